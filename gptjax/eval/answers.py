"""Answers of a model to many prompts, as texts on the host."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gptjax.data.loader import EVERYTHING, Share, evaluation_batches, own_rows
from gptjax.types import PromptBatch


@dataclass(frozen=True, kw_only=True)
class Answer:
    """text: decoded, without the end token.  ended: whether it ended its turn.  tokens: ids, end token included."""

    text: str
    ended: bool
    tokens: tuple[int, ...]


def answers(
    sample: Callable[[Any, np.ndarray, jax.Array], tuple[Any, Any]],
    prompts: PromptBatch,
    key: jax.Array,
    *,
    batch_size: int,
    share: Share = EVERYTHING,
    put: Callable[[Any], Any],
    decode: Callable[[Iterable[int]], str],
    end_id: int,
    multiple: int = 1,
) -> list[Answer]:
    """One answer to each prompt, in order.

    Args:
        sample: (prompts on the mesh, index_B, key) -> (tokens_BR, mask_BR) of the whole batch, on the host or
            addressable; see gptjax.generate.engine.generate.
        prompts: all prompts, on the host; repeat a row to get several answers to it (one after the other, so that the
            prompt is prefilled once).
        key: PRNG key; batch i draws from fold_in(key, i).
        batch_size: prompts at a time.
        share: what this host puts of each batch; it gets all answers.
        put: host batch -> batch on the mesh.
        decode: token ids -> text.
        end_id: the end-of-turn token.
        multiple: of prompts, that the mesh can spread.
    """
    found: list[Answer] = []
    total = len(prompts.lengths_B)
    for number, batch in enumerate(evaluation_batches(prompts, batch_size)):
        lengths_B = np.maximum(batch.lengths_B, 1)  # a filler row needs one token to attend to
        filled = PromptBatch(tokens_BP=batch.tokens_BP, lengths_B=lengths_B)
        asked, index_B = distinct(filled, multiple)
        tokens_BR, mask_BR = map(
            np.asarray, sample(put(own_rows(asked, share)), index_B, jax.random.fold_in(key, number))
        )
        found += answers_in(tokens_BR, mask_BR, decode, end_id)
    return found[:total]


def distinct(prompts: PromptBatch, multiple: int = 1) -> tuple[PromptBatch, np.ndarray]:
    """Each run of equal prompts once, and where each row finds its prompt.

    Args:
        prompts: B prompts, on the host.
        multiple: what the number of prompts stays a multiple of.

    Returns:
        (prompts, index_B): a half, a quarter, ... of B prompts, the smallest that holds them, so that few shapes are
        ever compiled; the last ones are copies of the first.
    """
    tokens_BP, lengths_B = prompts.tokens_BP, prompts.lengths_B
    changed_B = (tokens_BP[1:] != tokens_BP[:-1]).any(axis=1) | (lengths_B[1:] != lengths_B[:-1])
    first = np.concatenate([[0], 1 + np.flatnonzero(changed_B)])
    size = len(lengths_B)
    while size % (2 * multiple) == 0 and size // 2 >= len(first):
        size //= 2
    kept = np.concatenate([first, np.zeros(size - len(first), first.dtype)])
    index_B = np.cumsum(np.concatenate([[False], changed_B])).astype(np.int32)
    return PromptBatch(tokens_BP=tokens_BP[kept], lengths_B=lengths_B[kept]), index_B


def answers_in(
    tokens_BR: np.ndarray, mask_BR: np.ndarray, decode: Callable[[Iterable[int]], str], end_id: int
) -> list[Answer]:
    """The answers that sampled tokens spell; the mask is true up to and including the end token."""
    found = []
    for tokens_R, mask_R in zip(tokens_BR, mask_BR, strict=True):
        ids = tokens_R[mask_R].tolist()
        ended = bool(ids) and ids[-1] == end_id
        found.append(Answer(text=decode(ids[:-1] if ended else ids), ended=ended, tokens=tuple(ids)))
    return found


def repeated(prompts: PromptBatch, times: int) -> PromptBatch:
    """Each prompt `times` times in a row."""
    return PromptBatch(
        tokens_BP=np.repeat(prompts.tokens_BP, times, axis=0), lengths_B=np.repeat(prompts.lengths_B, times)
    )
