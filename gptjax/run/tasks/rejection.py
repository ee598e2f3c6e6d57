"""Rejection sampling: many answers to each prompt, the best by the reward model kept, fine-tuning on the winners."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax.choices import check_numbers
from gptjax.data.prompts import prompt_batch
from gptjax.eval.answers import Answer
from gptjax.eval.best_of_n import best_of_n_kl
from gptjax.files import write_atomically
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.run.hosts import first_says, on_first
from gptjax.run.progress import status
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks import sft
from gptjax.run.tasks.asked import asked_prompts
from gptjax.run.tasks.judge import Judge
from gptjax.run.tasks.upstream import inherited, load_policy, reward_model


@dataclass(frozen=True, kw_only=True)
class RejectionTask:
    """Supervised fine-tuning on the best of n answers of the model itself.

    policy_from: stage or folder that answers, and whose weights are tuned.  reward_from: that of the reward model.
    prompts: JSON lines of {"messages": [...]}; None: questions about this Python's library.  train_prompts: how many.
    samples: n, answers to each prompt.  temperature: of sampling.
    prompt_tokens, answer_tokens: P and R; longer prompts are left out.
    heldout_fraction, row_tokens, loss_chunks, heldout_prompts: of the fine-tuning on the winners, as in SFT.
    """

    policy_from: str = "sft"
    reward_from: str = "reward"
    prompts: Path | None = None
    train_prompts: int = 1024
    samples: int = 8
    temperature: float = 1.0
    prompt_tokens: int = 64
    answer_tokens: int = 48
    heldout_fraction: float = 0.1
    row_tokens: int = 256
    loss_chunks: int = 1
    heldout_prompts: int = 256

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(
                f"task.samples must be at least 2: a winner needs others to win against, got {self.samples}"
            )
        if self.train_prompts < 2:
            raise ValueError(f"task.train_prompts must be at least 2, got {self.train_prompts}")
        sizes = ("prompt_tokens", "answer_tokens", "row_tokens", "loss_chunks", "heldout_prompts")
        check_numbers(self, "task", at_least_1=sizes, positive=("temperature",))


def build(config: RejectionTask, setup: Setup) -> Task:
    """The SFT task on the winners, which are drawn once and kept in the stage's folder."""
    winners, about = setup.folder / "data" / "winners.jsonl", setup.folder / "data" / "winners.json"
    if not first_says(about.exists()):  # written last
        figures = draw_winners(config, setup, winners)
        on_first(lambda: write_atomically(about, json.dumps(figures, indent=1)))
    tuning = sft.build(_tuning(config, winners), setup)
    drawn = json.loads(about.read_text(encoding="utf-8"))

    def finish(state):
        state, found = tuning.finish(state)
        return state, found | drawn

    return dataclasses.replace(tuning, finish=finish)


def outline(config: RejectionTask, setup: Setup) -> Outline:
    """The fine-tuning without its winners; drawing them is sampling, which happens once, before it."""
    return sft.outline(_tuning(config, Path("winners.jsonl")), setup)


def _tuning(config: RejectionTask, winners: Path) -> sft.SftTask:
    return sft.SftTask(
        start_from=config.policy_from,
        conversations=winners,
        heldout_fraction=config.heldout_fraction,
        turns="last",
        row_tokens=config.row_tokens,
        loss_chunks=config.loss_chunks,
        prompt_tokens=config.prompt_tokens,
        answer_tokens=config.answer_tokens,
        heldout_prompts=config.heldout_prompts,
    )


def draw_winners(config: RejectionTask, setup: Setup, path: Path) -> dict[str, Any]:
    """Write the winners as conversations to `path`; returns what was drawn and what the choice gained and cost."""
    upstream, tokenizer = inherited(config.policy_from, setup)
    model, scalar = language_model(setup.model), scalar_model(setup.model)
    params = load_policy(model, upstream, setup.mesh)
    models = {"reference": params} | reward_model(config.reward_from, setup)
    asked, _ = asked_prompts(config.prompts)
    order = np.sort(np.random.default_rng(setup.seed).permutation(len(asked))[: config.train_prompts])
    prompts, fitting = prompt_batch([asked[i].messages for i in order], tokenizer, config.prompt_tokens)
    kept = [asked[order[index]].messages for index in fitting]
    sampling = SamplingConfig(max_new_tokens=config.answer_tokens, temperature=config.temperature)
    judge = Judge(setup, tokenizer, model, scalar, models, sampling)
    with status(f"sampling {config.samples} answers to each of {len(kept)} prompts"):
        scores_BC, _, found = judge.answers(params, prompts, jax.random.key(setup.seed), config.samples)
    groups = [found[start : start + config.samples] for start in range(0, len(found), config.samples)]
    chosen = [winner(scores_C, group) for scores_C, group in zip(scores_BC, groups, strict=True)]
    won, lines = [], []
    for messages, group, scores_C, index in zip(kept, groups, scores_BC, chosen, strict=True):
        if index is not None:
            won.append(scores_C[index])
            said = [*messages, {"role": "assistant", "content": group[index].text}]
            lines.append(json.dumps({"messages": said, "score": float(won[-1])}, ensure_ascii=False) + "\n")
    if not lines:
        raise ValueError(
            f"none of {len(found)} answers of {config.policy_from} both ended and got a score: raise "
            f"task.answer_tokens ({config.answer_tokens}), or train that stage for longer"
        )
    on_first(lambda: write_atomically(path, "".join(lines)))
    return {
        "winners": len(lines),
        "prompts_without_winner": len(kept) - len(lines),
        "unscored_samples": int(np.sum(~np.isfinite(scores_BC))),
        "proxy_samples": float(np.mean(scores_BC[np.isfinite(scores_BC)])),
        "proxy_winners": float(np.mean(won)),
        "best_of_n_kl_nats": best_of_n_kl(config.samples),
    }


def winner(scores_C: np.ndarray, answers: list[Answer]) -> int | None:
    """The answer with the highest score among those that ended and have one; the first of equals, None without any.

    An answer that was cut off cannot win: fine-tuning on it would add the end token that the policy did not emit.
    """
    able = [
        index
        for index, (score, answer) in enumerate(zip(scores_C, answers, strict=True))
        if answer.ended and answer.text and np.isfinite(score)
    ]
    return max(able, key=lambda index: scores_C[index], default=None)
