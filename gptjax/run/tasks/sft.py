"""Supervised fine-tuning: conversations -> a model that answers and ends its turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from gptjax.choices import check_numbers
from gptjax.data.conversations import Message, Turns, pack_conversations, read_conversations
from gptjax.data.heldout import hash_fraction
from gptjax.data.loader import batch_at, fingerprint
from gptjax.data.packing import weighted_by_segment
from gptjax.data.prompts import prompt_batch
from gptjax.data.python_docs import HELDOUT_FRACTION
from gptjax.data.python_questions import questions
from gptjax.data.tokenizer import Tokenizer
from gptjax.generate.engine import SamplingConfig
from gptjax.run.progress import status
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks.corpus import check_library_split
from gptjax.run.tasks.outlines import rows_outline, trained_model
from gptjax.run.tasks.rows import heldout_figures
from gptjax.run.tasks.sampler import sampler
from gptjax.run.tasks.upstream import inherited, started
from gptjax.train.rows import heldout_sums
from gptjax.train.sft import sft_step
from gptjax.types import PromptBatch


@dataclass(frozen=True, kw_only=True)
class SftTask:
    """Demonstrations of how to answer.

    start_from: stage of the recipe, or folder of a trained stage, whose weights and tokenizer are taken.
    conversations: JSON lines of {"messages": [{"role", "content"}, ...]}; None: questions about this Python's library.
    heldout_fraction: of the conversations, never trained on; with the default questions always 0.1, of the modules.
    turns: which of the assistant's turns are learnt.  reduction: the training loss is the mean over target tokens, or
    over conversations; the held-out one is always that over tokens.
    row_tokens: T.  prompt_tokens, answer_tokens: of held-out prompts and their answers when the model is examined.
    heldout_prompts: how many held-out prompts are answered.
    """

    start_from: str = "lm"
    conversations: Path | None = None
    heldout_fraction: float = HELDOUT_FRACTION
    turns: Turns = "all"
    reduction: Literal["token", "example"] = "token"
    row_tokens: int = 256
    loss_chunks: int = 1
    prompt_tokens: int = 64
    answer_tokens: int = 48
    heldout_prompts: int = 256

    def __post_init__(self) -> None:
        sizes = ("row_tokens", "loss_chunks", "prompt_tokens", "answer_tokens", "heldout_prompts")
        check_numbers(self, "task", at_least_1=sizes)
        if self.conversations is None:
            check_library_split(self.heldout_fraction)


def build(config: SftTask, setup: Setup) -> Task:
    """The task, with its conversations rendered and packed."""
    _, tokenizer = inherited(config.start_from, setup)
    with status("reading conversations"):
        train, heldout = conversations(config)
    (rows, packed), (heldout_rows, _) = (
        pack_conversations(chosen, tokenizer, config.row_tokens, turns=config.turns) for chosen in (train, heldout)
    )
    if config.reduction == "example":
        rows = weighted_by_segment(rows)
    made, (model, tx) = outline(config, setup), trained_model(setup)
    sums = partial(heldout_sums, model=model, loss_chunks=config.loss_chunks)
    heldout_of = heldout_figures(sums, heldout_rows, setup)
    answer = sampler(model, setup, tokenizer, SamplingConfig(max_new_tokens=config.answer_tokens))
    prompts, shown, references = _examined(config, heldout, tokenizer)

    def evaluate(state):
        figures = heldout_of(state)
        return {f"eval/{name}": figures[name] for name in ("nats_per_token", "accuracy")}

    def finish(state):
        found = answer(state.params, prompts, jax.random.key(setup.seed), min(128, 8 * setup.batch_size))
        table = [
            {"prompt": prompt, "reference": reference, "answer": given.text}
            for prompt, reference, given in zip(shown, references, found, strict=True)
        ]
        figures = {name.removeprefix("eval/"): value for name, value in evaluate(state).items()}
        return state, figures | {
            "end_rate": float(np.mean([given.ended for given in found])),
            "answer_tokens": float(np.mean([len(given.tokens) for given in found])),
            "conversations": packed.conversations,
            "conversations_truncated": packed.truncated,
            "conversations_dropped": packed.dropped,
            "answers": table[:20],
        }

    return Task(
        init=made.init,
        start=started(model, tx, setup, config.start_from),
        data=lambda position: batch_at(rows, position, setup.batch_size, setup.seed, setup.share),
        step=made.step,
        evaluate=evaluate,
        finish=finish,
        tokens="sft/row_tokens",
        loss="sft/nats_per_token",
        flops_per_token=setup.model.train_flops_per_token(config.row_tokens),
        data_fingerprint=f"{fingerprint(rows)}-{tokenizer.fingerprint[:16]}",
    )


def outline(config: SftTask, setup: Setup) -> Outline:
    """The task without its conversations."""
    model, tx = trained_model(setup)
    step = partial(sft_step, model=model, optimizer=tx, loss_chunks=config.loss_chunks)
    return rows_outline(setup, model, tx, step, config.row_tokens)


def conversations(config: SftTask) -> tuple[list[list[Message]], list[list[Message]]]:
    """(training conversations, held-out conversations)."""
    if config.conversations is None:
        train, heldout = ([question.conversation for question in questions(split)] for split in ("train", "heldout"))
        return train, heldout
    everything = list(read_conversations(config.conversations))
    train, heldout = [], []
    for messages in everything:
        (heldout if hash_fraction(repr(list(messages))) < config.heldout_fraction else train).append(messages)
    if not heldout or not train:
        raise ValueError(
            f"{config.conversations}: {len(everything)} conversations are too few to hold "
            f"{config.heldout_fraction:.0%} of them out: give more, or change task.heldout_fraction"
        )
    return train, heldout


def _examined(
    config: SftTask, heldout: list[list[Message]], tokenizer: Tokenizer
) -> tuple[PromptBatch, list[str], list[str]]:
    """(held-out prompts, what they ask, the true answers)."""
    examined = [messages for messages in heldout if messages[0]["role"] != "assistant"]
    asked = [_prompt(messages) for messages in examined]
    prompts, fitting = prompt_batch(asked, tokenizer, config.prompt_tokens)
    kept = fitting[: config.heldout_prompts]
    shown = [asked[index][-1]["content"] for index in kept]
    return jax.tree.map(lambda x: x[: len(kept)], prompts), shown, [_reference(examined[index]) for index in kept]


def _prompt(messages: Sequence[Message]) -> Sequence[Message]:
    """Up to the first thing that the assistant says."""
    first = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:first]


def _reference(messages: Sequence[Message]) -> str:
    return next(message["content"] for message in messages if message["role"] == "assistant")
