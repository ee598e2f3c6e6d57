"""Comparisons without people: candidates sampled from a model and a few variants, ranked by the simulated labeler."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from gptjax.data.labeler import SimulatedLabeler, corruptions
from gptjax.data.preferences import Comparison, Response
from gptjax.data.prompts import prompt_batch
from gptjax.data.python_questions import Question
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.answers import Answer, repeated
from gptjax.files import replacing
from gptjax.types import PromptBatch

T = TypeVar("T")
FEWEST, MOST = 4, 9  # candidates per prompt, as in InstructGPT


def simulated_comparisons(
    asked: Sequence[Question],
    tokenizer: Tokenizer,
    sample: Callable[[PromptBatch, jax.Array], list[Answer]],
    labeler: SimulatedLabeler,
    *,
    prompt_tokens: int,
    seed: int,
) -> list[Comparison]:
    """K = 4 to 9 ranked candidates for each question; more than half are samples of the model.

    The others are the true answer and truncated, repeated and off-topic answers, each in about a third of the prompts;
    a question without a true answer has only off-topic ones.
    Every candidate carries its `source` and its noise-free `gold` score.

    Args:
        asked: questions with their true answers; those longer than `prompt_tokens` are left out.
        tokenizer: renders the prompts.
        sample: (prompts, key) -> one answer to each row.
        labeler: the simulated labeler.
        prompt_tokens: P, columns of a prompt.
        seed: of the candidates, their number and the labeler's noise.
    """
    prompts, fitting = prompt_batch([question.messages for question in asked], tokenizer, prompt_tokens)
    kept = [asked[index] for index in fitting]
    rngs = [np.random.default_rng([seed, number]) for number in range(len(kept))]
    others = [question.answer for question in kept if question.answer]
    variants = [_variants(question, others, rng) for question, rng in zip(kept, rngs, strict=True)]
    sizes = np.array([size - len(chosen) for size, chosen in variants])
    sampled = iter(sample(repeated(prompts, sizes), jax.random.key(seed)))
    comparisons = []
    for question, rng, (size, chosen) in zip(kept, rngs, variants, strict=True):
        drawn = [next(sampled) for _ in range(size - len(chosen))]
        comparisons.append(_ranked(question, chosen, drawn, labeler, rng))
    return comparisons


def _ranked(
    question: Question,
    chosen: list[Response],
    drawn: list[Answer],
    labeler: SimulatedLabeler,
    rng: np.random.Generator,
) -> Comparison:
    """The candidates of a question in random order, with their gold scores and the labeler's ranks."""
    everything = chosen + [
        Response(content=answer.text, ended=answer.ended, extra={"source": "sampled"})
        for answer in drawn
        if answer.text or answer.ended
    ]
    responses = [everything[i] for i in rng.permutation(len(everything))]
    golds = [labeler.gold_score(question.name, response.content, response.ended) for response in responses]
    responses = [
        dataclasses.replace(response, extra=response.extra | {"gold": gold})
        for response, gold in zip(responses, golds, strict=True)
    ]
    return Comparison(
        messages=question.messages,
        responses=responses,
        ranks=labeler.rank(golds, rng),
        extra={"labeler": "simulated", "name": question.name, "form": question.form},
    )


def own_comparisons(
    read: Callable[[Path], Iterator[T]], path: Path, heldout_path: Path | None
) -> tuple[list[T], list[T]]:
    """(training, held-out) comparisons of the user's files.

    Args:
        read: gives the comparisons of a file.
        path: of training, whose last tenth is held out if there is no other file.
        heldout_path: a file of those that are never trained on, or None.

    Raises:
        ValueError: there are too few to hold some out.
    """
    train = list(read(path))
    if heldout_path is not None:
        return train, list(read(heldout_path))
    cut = len(train) - max(1, len(train) // 10)
    if cut < 1:
        raise ValueError(f"{path}: {len(train)} comparisons are too few to hold some out; give more")
    return train[:cut], train[cut:]


def permuted(comparisons: Sequence[Comparison], seed: int) -> list[Comparison]:
    """The same candidates with their ranks shuffled within each prompt: a control from which nothing can be learnt."""
    rng = np.random.default_rng(seed)
    return [
        dataclasses.replace(comparison, ranks=[comparison.ranks[i] for i in rng.permutation(len(comparison.ranks))])
        for comparison in comparisons
    ]


def write_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Write JSON lines that `read_preferences` reads, in one move."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for comparison in comparisons:
            responses = [
                {"content": response.content, "ended": response.ended} | response.extra
                for response in comparison.responses
            ]
            line = {"messages": list(comparison.messages), "responses": responses, "ranks": list(comparison.ranks)}
            file.write(json.dumps(line | comparison.extra, ensure_ascii=False) + "\n")


def _variants(question: Question, others: Sequence[str], rng: np.random.Generator) -> tuple[int, list[Response]]:
    """(K, the candidates that are not sampled: fewer than half)."""
    size = int(rng.integers(FEWEST, MOST + 1))
    variants = [Response(content=question.answer, extra={"source": "reference"})] if question.answer else []
    variants += corruptions(question.answer, rng, others)
    return size, [variant for variant in variants if rng.random() < 1 / 3][: (size - 1) // 2]
