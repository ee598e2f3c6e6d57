"""Conversations rendered token by token, with the loss mask made on the way."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gptjax.data.packing import pack
from gptjax.data.sources import field_of, read_jsonl
from gptjax.data.tokenizer import ROLES, Tokenizer
from gptjax.types import LmBatch

Message: TypeAlias = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Turns: TypeAlias = Literal["all", "last"]


@dataclass(frozen=True, kw_only=True)
class ConversationReport:
    """What became of the conversations.

    conversations: given.  truncated: cut on the right to the row's length, still with a target.
    dropped: left out, as cutting would have removed every target.
    """

    conversations: int
    truncated: int
    dropped: int


def parse_messages(value: list[Any], where: str) -> list[Message]:
    """Check that `value` is a conversation.

    Args:
        value: what the JSON says.
        where: file:line, for the message.

    Returns:
        The messages, with role and content only.

    Raises:
        ValueError: it is empty, an entry is no message with a known role and text, or a system message is not the
            first.
    """
    if not value:
        raise ValueError(f"{where}: field 'messages': expected a non-empty list, got an empty list")
    messages = []
    for index, entry in enumerate(value):
        here = f"{where}: messages[{index}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{here}: expected an object, got {type(entry).__name__}")
        role, content = (field_of(entry, field, str, here) for field in ("role", "content"))
        if role not in ROLES:
            raise ValueError(f"{here}: role {role!r}: choose system, user or assistant")
        if role == "system" and index:
            raise ValueError(f"{here}: a system message must be the first")
        messages.append({"role": role, "content": content})
    return messages


def read_messages(path: str | os.PathLike[str]) -> Iterator[tuple[str, list[Message], dict[str, Any]]]:
    """Yield (file:line, messages, whole object) for each line of a file with a `messages` field.

    Raises:
        ValueError: `path:line: ...` for a bad line, `path: ...` if there is none at all.
    """
    where = None
    for line, record in read_jsonl(path):
        where = f"{path}:{line}"
        yield where, parse_messages(field_of(record, "messages", list, where), where), record
    if where is None:
        raise ValueError(f"{path}: the file holds no lines")


def read_conversations(path: str | os.PathLike[str]) -> Iterator[list[Message]]:
    """Conversations of a JSON-lines file, one `{"messages": [...]}` per line.

    Raises:
        ValueError: `path:line: ...` for a bad line or a conversation without an assistant message.
    """
    for where, messages, _ in read_messages(path):
        if all(message["role"] != "assistant" for message in messages):
            raise ValueError(f"{where}: no assistant message: there is nothing to learn")
        yield messages


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, turns: Turns = "all") -> tuple[list[int], list[int]]:
    """Tokens of a conversation: BOS, then role, content and end of turn for each message.

    Args:
        messages: the conversation.
        tokenizer: gives the ids.
        turns: learn all assistant messages, or the last message only, if it is the assistant's.

    Returns:
        (ids, mask): mask is 1 for assistant content and the end token after it, 0 elsewhere.

    Source: InstructGPT, arXiv:2203.02155, section 3.5 (the loss is on the demonstration).
    """
    if turns not in ("all", "last"):
        raise ValueError(f"turns={turns!r}: choose all or last")
    role_ids = {"system": tokenizer.system_id, "user": tokenizer.user_id, "assistant": tokenizer.assistant_id}
    ids, mask = [tokenizer.bos_id], [0]
    for index, message in enumerate(messages):
        content = tokenizer.encode(message["content"])
        learnt = message["role"] == "assistant" and (turns == "all" or index == len(messages) - 1)
        ids += [role_ids[message["role"]], *content, tokenizer.end_id]
        mask += [0] + [int(learnt)] * (len(content) + 1)
    return ids, mask


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Tokens up to where the assistant begins to speak: `render` followed by the assistant's header."""
    return [*render(messages, tokenizer)[0], tokenizer.assistant_id]


def pack_conversations(
    conversations: Iterable[Sequence[Message]], tokenizer: Tokenizer, row_tokens: int, *, turns: Turns = "all"
) -> tuple[LmBatch, ConversationReport]:
    """Pack conversations into rows, one segment for each.

    Args:
        conversations: what to learn from.
        tokenizer: gives the ids.
        row_tokens: tokens per row (T); a longer conversation loses its right end.
        turns: see `render`.

    Returns:
        (rows, report); the arrays of `rows` are [rows, T].

    Raises:
        ValueError: no conversation keeps a target.
    """
    documents, masks = [], []
    given = truncated = 0
    for messages in conversations:
        ids, mask = render(messages, tokenizer, turns=turns)
        given += 1
        if any(mask[:row_tokens]):
            truncated += len(ids) > row_tokens
            documents.append(ids[:row_tokens])
            masks.append(mask[:row_tokens])
    if not documents:
        raise ValueError(f"none of {given} conversations has a target within its first {row_tokens} tokens")
    rows, _ = pack(documents, row_tokens, loss_masks=masks, pad_id=tokenizer.pad_id)
    dropped = given - len(documents)
    return rows, ConversationReport(conversations=given, truncated=truncated, dropped=dropped)
