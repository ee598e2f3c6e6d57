"""Answers of a model to many prompts, as texts on the host."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gptjax.data.loader import EVERYTHING, Share, evaluation_batches
from gptjax.types import PromptBatch


@dataclass(frozen=True, kw_only=True)
class Answer:
    """text: decoded, without the end token.  ended: whether it ended its turn.  tokens: ids, end token included."""

    text: str
    ended: bool
    tokens: tuple[int, ...]


def answers(
    sample: Callable[[Any, jax.Array], tuple[Any, Any]],
    prompts: PromptBatch,
    key: jax.Array,
    *,
    batch_size: int,
    share: Share = EVERYTHING,
    put: Callable[[Any], Any],
    decode: Callable[[Iterable[int]], str],
    end_id: int,
) -> list[Answer]:
    """One answer to each prompt, in order.

    Args:
        sample: (prompts on the mesh, key) -> (tokens_BR, mask_BR) of the whole batch, on the host or addressable; see
            gptjax.generate.engine.generate.
        prompts: all prompts, on the host; repeat a row to get several answers to it.
        key: PRNG key; batch i draws from fold_in(key, i).
        batch_size: prompts at a time.
        share: what this host puts of each batch; it gets all answers.
        put: host batch -> batch on the mesh.
        decode: token ids -> text.
        end_id: the end-of-turn token.
    """
    found: list[Answer] = []
    total = len(prompts.lengths_B)
    for number, batch in enumerate(evaluation_batches(prompts, batch_size, share)):
        lengths_B = np.maximum(batch.lengths_B, 1)  # a filler row needs one token to attend to
        filled = PromptBatch(tokens_BP=batch.tokens_BP, lengths_B=lengths_B)
        tokens_BR, mask_BR = map(np.asarray, sample(put(filled), jax.random.fold_in(key, number)))
        for tokens_R, mask_R in zip(tokens_BR, mask_BR, strict=True):
            ids = tokens_R[mask_R].tolist()
            ended = bool(ids) and ids[-1] == end_id
            found.append(Answer(text=decode(ids[:-1] if ended else ids), ended=ended, tokens=tuple(ids)))
    return found[:total]


def repeated(prompts: PromptBatch, times: int) -> PromptBatch:
    """Each prompt `times` times in a row."""
    return PromptBatch(
        tokens_BP=np.repeat(prompts.tokens_BP, times, axis=0), lengths_B=np.repeat(prompts.lengths_B, times)
    )
