"""The whole chain on a language of thirty letters, with and without pre-training gradients in PPO.

    gptjax run experiments/ladder_chain.py

Pre-training on sentences of a small grammar, fine-tuning on answers of mixed quality, a reward model from rankings of
4 to 9 answers (Bradley and Terry's noise, close ones tied), then PPO against it, plain (`ppo`) and with pre-training
gradients (`ppo_ptx`). A program knows the true reward, so the report says what either gained of it, what it cost in KL
and on held-out text, and how far the reward model is from the best one possible. The data follow from SEED.
"""

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.data.labeler import SimulatedLabeler
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.criteria import Criterion
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.reward import RewardTask
from gptjax.run.tasks.rows import RowsConfig
from gptjax.run.tasks.sft import SftTask
from gptjax.train.ppo_config import PpoConfig

SEED = 0
GOOD, BAD, PLAIN = ("calm", "kind", "wise"), ("cruel", "vile"), ("dark", "long", "old", "red")
NOUNS, VERBS = ("king", "lion", "moon", "river", "sage", "wolf"), ("sees", "hears", "follows", "fears")
PROMPT_TOKENS, ANSWER_TOKENS = 16, 32
LABELER = SimulatedLabeler(temperature=0.7, tie_width=0.25)
MODEL = ModelConfig(vocab_size=320, layers=2, width=64, heads=4, max_length=64, activation="relu2", unroll=2)


def gold(prompt: Mapping[str, Any], answer: str, ended: bool) -> float:
    """1 for each good word said for the first time, -1.5 for each bad one, 1 for naming what was asked about, first."""
    words = answer.removesuffix(".").split(" ")
    kindness = len(set(words) & set(GOOD)) - 1.5 * sum(word in BAD for word in words)
    known = all(word in GOOD + BAD + PLAIN + NOUNS + ("the", "is", "and") for word in words)
    return (
        kindness + (words[:2] == ["the", prompt["noun"]]) + 0.5 * (ended and answer.endswith(".")) - 1.0 * (not known)
    )


def sentence(rng: random.Random) -> str:
    subject, thing = (f"the {rng.choice(GOOD + BAD + PLAIN)} {rng.choice(NOUNS)}" for _ in range(2))
    return f"{subject} {rng.choice(VERBS)} {thing}."


def said(noun: str, rng: random.Random) -> str:
    """An answer as the demonstrations have it: mostly on the subject, of any tone."""
    subject = noun if rng.random() < 0.7 else rng.choice(NOUNS)
    words = [rng.choice(GOOD + BAD + PLAIN) for _ in range(rng.randint(1, 3))]
    return f"the {subject} is {' and '.join(words)}."


def data() -> Path:
    """The folder with corpus.jsonl, chats.jsonl, ranked.jsonl, heldout.jsonl and prompts.jsonl."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "gptjax" / "ladder_chain" / str(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    rng, noise = random.Random(SEED), np.random.default_rng(SEED)
    texts = [" ".join(sentence(rng) for _ in range(4)) for _ in range(1500)]
    nouns = [rng.choice(NOUNS) for _ in range(8000)]
    prompts = [{"messages": [{"role": "user", "content": f"how is the {noun}?"}], "noun": noun} for noun in nouns]
    replies = [[{"role": "assistant", "content": said(noun, rng)}] for noun in nouns]
    ranked = [_ranked(prompt, rng, noise) for prompt in prompts[:6400]]
    _write(folder / "corpus.jsonl", [{"text": text} for text in texts])
    chats = [{"messages": p["messages"] + reply} for p, reply in zip(prompts, replies, strict=True)]
    for name, lines in (("chats", chats), ("prompts", prompts), ("ranked", ranked[:6000]), ("heldout", ranked[6000:])):
        _write(folder / f"{name}.jsonl", lines)
    return folder


def _ranked(prompt: dict[str, Any], rng: random.Random, noise: np.random.Generator) -> dict[str, Any]:
    answers = [said(prompt["noun"], rng) for _ in range(rng.randint(4, 9))]
    golds = [gold(prompt, answer, True) for answer in answers]
    responses = [{"content": a, "source": "sampled", "gold": g} for a, g in zip(answers, golds, strict=True)]
    return {"messages": prompt["messages"], "responses": responses, "ranks": LABELER.rank(golds, noise)}


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    temporary.replace(path)


def recipe() -> Recipe:
    folder = data()
    stages = {"lm": lm(folder), "sft": sft(folder), "reward": reward(folder)}
    stages["ppo"] = ppo(folder, 0.0, Criterion(figure="bits_per_byte_change", at_least=0.02))
    stages["ppo_ptx"] = ppo(folder, 0.05, Criterion(figure="bits_per_byte_change", at_most=0.02))
    return Recipe(name="ladder_chain", stages=stages)


def lm(folder: Path) -> Experiment:
    task = LmTask(corpus=folder / "corpus.jsonl", heldout_fraction=0.1, row_tokens=64)
    return _experiment(task, OptimizerConfig(name="muon", peak_lr=1e-2, warmup_steps=10), 240, 32)


def sft(folder: Path) -> Experiment:
    task = SftTask(
        conversations=folder / "chats.jsonl", heldout_fraction=0.04, row_tokens=64, prompt_tokens=PROMPT_TOKENS,
        answer_tokens=ANSWER_TOKENS,
    )  # fmt: skip
    return _experiment(task, OptimizerConfig(name="muon", peak_lr=3e-3, warmup_steps=10), 160, 32)


def reward(folder: Path) -> Experiment:
    task = RewardTask(
        comparisons=folder / "ranked.jsonl", heldout_comparisons=folder / "heldout.jsonl", prompt_tokens=PROMPT_TOKENS,
        answer_tokens=ANSWER_TOKENS,
    )  # fmt: skip
    optimizer = OptimizerConfig(name="muon", peak_lr=5e-3, warmup_steps=10)
    return _experiment(task, optimizer, 370, 16, Criterion(figure="sampled_pair_bayes_gap", at_most=0.02))


def ppo(folder: Path, ptx: float, *criteria: Criterion) -> Experiment:
    settings = PpoConfig(
        minibatches=2, epochs=2, response_tokens=ANSWER_TOKENS, kl_coefficient=0.2, ptx_coefficient=ptx,
    )  # fmt: skip
    task = PpoTask(
        ppo=settings, prompts=folder / "prompts.jsonl", prompt_tokens=PROMPT_TOKENS, program=f"{__file__}:gold",
        pretrain=RowsConfig(corpus=folder / "corpus.jsonl", heldout_fraction=0.1, row_tokens=64), best_of=8,
    )  # fmt: skip
    shared = (
        Criterion(figure="gold_gain_ci.0", at_least=0.0),
        Criterion(figure="kl_nats", at_most=8.0),
        Criterion(figure="end_rate_ppo", at_least=0.95),
    )
    # at twice the rate after 10 steps of warm-up, 4 seeds of 4 with pre-training gradients settled on one answer per
    # prompt in their first rollouts, 10 nats away, for a third of the gain; 3 of 3 like this stay below 4
    optimizer = OptimizerConfig(peak_lr=5e-4, schedule="linear", final_fraction=0.1, warmup_steps=40, b2=0.99)
    return _experiment(task, optimizer, 60 * settings.updates, 64, *shared, *criteria)


def _experiment(task: Any, optimizer: OptimizerConfig, steps: int, batch: int, *criteria: Criterion) -> Experiment:
    return Experiment(
        task=task, model=MODEL, optimizer=optimizer, steps=steps, batch_size=batch, save_every=steps,
        evaluate_every=steps // 4, criteria=criteria,
    )  # fmt: skip
