"""Answers of a model to many prompts, as texts on the host."""

from dataclasses import dataclass

import numpy as np

from gptjax.data.tokenizer import Tokenizer
from gptjax.types import PromptBatch


@dataclass(frozen=True, kw_only=True)
class Answer:
    """text: decoded, without the end token.  ended: whether it ended its turn.  tokens: ids, end token included."""

    text: str
    ended: bool
    tokens: tuple[int, ...]


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


def answers_in(tokens_BR: np.ndarray, mask_BR: np.ndarray, tokenizer: Tokenizer) -> list[Answer]:
    """The answers that sampled tokens spell; the mask is true up to and including the end token."""
    found = []
    for tokens_R, mask_R in zip(tokens_BR, mask_BR, strict=True):
        ids = tokens_R[mask_R].tolist()
        ended = bool(ids) and ids[-1] == tokenizer.end_id
        found.append(Answer(text=tokenizer.decode(ids[:-1] if ended else ids), ended=ended, tokens=tuple(ids)))
    return found


def repeated(prompts: PromptBatch, times: int | np.ndarray) -> PromptBatch:
    """Each prompt `times` times in a row, or the first times_B[0] times, the second times_B[1] times and so on."""
    return PromptBatch(
        tokens_BP=np.repeat(prompts.tokens_BP, times, axis=0), lengths_B=np.repeat(prompts.lengths_B, times)
    )
