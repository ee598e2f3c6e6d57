"""Ranked responses: 2 to 32 candidates per prompt in a weak order, as training data for a reward model."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptjax.data.conversations import ChatTokenizer, Message, read_messages, render_prompt
from gptjax.data.prompts import check_prompt
from gptjax.data.sources import string_field
from gptjax.types import RewardBatch

MAX_CANDIDATES = 32


@dataclass(frozen=True, kw_only=True)
class Response:
    """One candidate: its text, whether it ended its turn by itself, and whatever else the file says of it.

    Raises:
        ValueError: the response is empty and did not even end.
    """

    content: str
    ended: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.content and not self.ended:
            raise ValueError("the response is empty and did not end: it holds no token to score")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A prompt, its candidates and their ranks: 1 = best, equal ranks are ties.

    extra: the other fields of the line (labeler, kind of prompt).

    Raises:
        ValueError: the number of candidates lies outside 2..32, or the ranks are no weak order.
    """

    messages: Sequence[Message]
    responses: Sequence[Response]
    ranks: Sequence[int]
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 2 <= len(self.responses) <= MAX_CANDIDATES:
            raise ValueError(f"field 'responses': expected 2..{MAX_CANDIDATES} candidates, got {len(self.responses)}")
        if len(self.ranks) != len(self.responses):
            raise ValueError(f"field 'ranks': {len(self.ranks)} ranks for {len(self.responses)} responses")
        check_ranks(self.ranks)


@dataclass(frozen=True, kw_only=True)
class RewardReport:
    """What became of the comparisons: how many were given, how many were dropped as too long, and which were kept.

    kept: row i of the batch is comparison `kept[i]` of those given.
    """

    comparisons: int
    dropped: int
    kept: tuple[int, ...]


def check_ranks(ranks: Sequence[int]) -> None:
    """Accept dense (1, 2, 2, 3) and competition ranks (1, 2, 2, 4), refuse all else.

    Raises:
        ValueError: a rank is no whole number, or the ranks are no such weak order.
    """
    wrong = [rank for rank in ranks if not isinstance(rank, int) or isinstance(rank, bool)]
    if wrong:
        raise ValueError(f"field 'ranks': expected whole numbers, got {wrong[0]!r}")
    dense = {rank: place for place, rank in enumerate(sorted(set(ranks)), 1)}
    competition = {rank: 1 + sum(other < rank for other in ranks) for rank in ranks}
    if any(dense[rank] != rank for rank in ranks) and any(competition[rank] != rank for rank in ranks):
        raise ValueError(f"field 'ranks': {list(ranks)} is no ranking; {[dense[rank] for rank in ranks]} would be")


def read_preferences(path: str | os.PathLike[str]) -> Iterator[Comparison]:
    """Comparisons of a JSON-lines file with `messages`, `responses` and `ranks` on each line.

    Args:
        path: the file; a response is `{"content": text, "ended": true, ...}`, and further keys end up in `extra`.

    Returns:
        Iterator of comparisons.

    Raises:
        ValueError: `path:line: ...` for a bad line.
    """
    for where, messages, record in read_messages(path):
        check_prompt(messages, where)
        lists = [_list(record, name, where) for name in ("responses", "ranks")]
        responses = [_response(entry, f"{where}: responses[{index}]") for index, entry in enumerate(lists[0])]
        extra = {key: value for key, value in record.items() if key not in ("messages", "responses", "ranks")}
        try:
            comparison = Comparison(messages=messages, responses=responses, ranks=lists[1], extra=extra)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        yield comparison


def render_response(messages: Sequence[Message], response: Response, tokenizer: ChatTokenizer) -> list[int]:
    """Tokens of prompt and response; the end token only if the response ended."""
    return render_prompt(messages, tokenizer) + tokenizer.encode(response.content) + [tokenizer.end_id] * response.ended


def reward_batch(
    comparisons: Sequence[Comparison], tokenizer: ChatTokenizer, row_tokens: int, *, candidates: int | None = None
) -> tuple[RewardBatch, RewardReport]:
    """Render all candidates of all prompts, padded on the right.

    Args:
        comparisons: what was ranked.
        tokenizer: gives the ids.
        row_tokens: columns (T); a comparison with a longer candidate is dropped whole.
        candidates: candidates per prompt in the arrays (C); None takes the most that any comparison has.

    Returns:
        (batch, report); tokens_BCT is i32[kept comparisons, C, T].

    Raises:
        ValueError: no comparison fits, or one has more than `candidates` responses.
    """
    most = max((len(comparison.responses) for comparison in comparisons), default=0)
    if candidates is not None and most > candidates:
        raise ValueError(f"a comparison has {most} responses, more than candidates={candidates}")
    rendered = [[render_response(c.messages, response, tokenizer) for response in c.responses] for c in comparisons]
    longest = [max(map(len, group)) for group in rendered]
    kept = tuple(index for index, length in enumerate(longest) if length <= row_tokens)
    if not kept:
        shortest = min(longest, default=0)
        raise ValueError(f"none of {len(rendered)} comparisons fits {row_tokens} tokens; the shortest needs {shortest}")
    shape = (len(kept), candidates or most)
    tokens_BCT = np.full((*shape, row_tokens), tokenizer.pad_id, np.int32)
    lengths_BC, ranks_BC = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, index in enumerate(kept):
        ranks_BC[row, : len(rendered[index])] = comparisons[index].ranks
        for column, ids in enumerate(rendered[index]):
            tokens_BCT[row, column, : len(ids)] = ids
            lengths_BC[row, column] = len(ids)
    report = RewardReport(comparisons=len(rendered), dropped=len(rendered) - len(kept), kept=kept)
    return RewardBatch(tokens_BCT=tokens_BCT, lengths_BC=lengths_BC, ranks_BC=ranks_BC), report


def _list(record: dict[str, Any], name: str, where: str) -> list[Any]:
    if name not in record:
        raise ValueError(f"{where}: no field {name!r}; the object has {', '.join(map(repr, record))}")
    if not isinstance(record[name], list):
        raise ValueError(f"{where}: field {name!r}: expected a list, got {type(record[name]).__name__}")
    return record[name]


def _response(entry: Any, where: str) -> Response:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object, got {type(entry).__name__}")
    content = string_field(entry, "content", where)
    ended = entry.get("ended", True)
    if not isinstance(ended, bool):
        raise ValueError(f"{where}: field 'ended': expected true or false, got {ended!r}")
    extra = {key: value for key, value in entry.items() if key not in ("content", "ended")}
    try:
        return Response(content=content, ended=ended, extra=extra)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
