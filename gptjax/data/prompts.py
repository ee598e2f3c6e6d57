"""Prompts to be answered: read from JSON lines, rendered up to the assistant's header, padded on the left."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gptjax.data.conversations import Message, read_messages, render_prompt
from gptjax.data.tokenizer import Tokenizer
from gptjax.types import PromptBatch


def read_prompts(path: str | os.PathLike[str]) -> Iterator[tuple[list[Message], dict[str, Any]]]:
    """(messages, whole object) of each line of a JSON-lines file of `{"messages": [...]}`.

    Raises:
        ValueError: `path:line: ...` for a bad line or a prompt that ends with the assistant's own words.
    """
    for where, messages, record in read_messages(path):
        check_prompt(messages, where)
        yield messages, record


def check_prompt(messages: Sequence[Message], where: str) -> None:
    """Raise ValueError, beginning with `where`, unless it is the assistant's turn to speak."""
    if not messages or messages[-1]["role"] != "user":
        last = messages[-1]["role"] if messages else "no"
        raise ValueError(f"{where}: a prompt must end with a user message, this one ends with {last!r}")


def prompt_batch(
    prompts: Sequence[Sequence[Message]], tokenizer: Tokenizer, prompt_tokens: int
) -> tuple[PromptBatch, tuple[int, ...]]:
    """Render prompts and pad them on the left, so that every response begins in the same column.

    Args:
        prompts: conversations that end with a user message.
        tokenizer: gives the ids.
        prompt_tokens: columns (P); longer prompts are dropped, the assistant's header counted.

    Returns:
        (batch, kept); tokens_BP is i32[kept prompts, P], and its row i is prompt `kept[i]` of those given.

    Raises:
        ValueError: no prompt fits.
    """
    rendered = [render_prompt(messages, tokenizer) for messages in prompts]
    kept = tuple(index for index, ids in enumerate(rendered) if len(ids) <= prompt_tokens)
    if not kept:
        shortest = min(map(len, rendered), default=0)
        raise ValueError(f"none of {len(rendered)} prompts fits {prompt_tokens} tokens; the shortest has {shortest}")
    tokens_BP = np.full((len(kept), prompt_tokens), tokenizer.pad_id, np.int32)
    for row, index in enumerate(kept):
        tokens_BP[row, prompt_tokens - len(rendered[index]) :] = rendered[index]
    lengths_B = np.array([len(rendered[index]) for index in kept], np.int32)
    return PromptBatch(tokens_BP=tokens_BP, lengths_B=lengths_B), kept
