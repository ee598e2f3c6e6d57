"""Ranked responses: 2 to 32 candidates per prompt in a weak order, as training data for a reward model."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptjax.data.conversations import Message, read_messages, render_prompt
from gptjax.data.prompts import check_prompt
from gptjax.data.sources import field_of
from gptjax.data.tokenizer import Tokenizer
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
class Answered:
    """A prompt and its responses; extra: the other fields of the line (labeler, kind of prompt)."""

    messages: Sequence[Message]
    responses: Sequence[Response]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison(Answered):
    """A prompt, its candidates and their ranks: 1 = best, equal ranks are ties.

    margins: (better, worse, margin) for pairs of candidates, numbered from 0, whose scores should differ by at least
    the margin; pairs that are not named have margin 0.

    Raises:
        ValueError: the number of candidates lies outside 2..32, the ranks are no weak order, or a margin contradicts
            them.
    """

    ranks: Sequence[int]
    margins: Sequence[tuple[int, int, float]] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.responses) <= MAX_CANDIDATES:
            raise ValueError(f"field 'responses': expected 2..{MAX_CANDIDATES} candidates, got {len(self.responses)}")
        if len(self.ranks) != len(self.responses):
            raise ValueError(f"field 'ranks': {len(self.ranks)} ranks for {len(self.responses)} responses")
        check_ranks(self.ranks)
        for entry in self.margins:
            _check_margin(entry, self.ranks)


@dataclass(frozen=True, kw_only=True)
class RewardReport:
    """What became of the comparisons (or rated prompts): how many were given, and how many dropped as too long.

    kept: row i of the batch is comparison `kept[i]` of those given.
    responses: in the rows that were kept.  unended: of these, cut off before their end; their last token is scored.
    """

    comparisons: int
    dropped: int
    kept: tuple[int, ...]
    responses: int
    unended: int


def check_ranks(ranks: Sequence[int]) -> None:
    """Accept dense (1, 2, 2, 3) and competition ranks (1, 2, 2, 4), refuse all else.

    Raises:
        ValueError: a rank is no whole number, or the ranks are no such weak order.
    """
    wrong = [rank for rank in ranks if not isinstance(rank, int) or isinstance(rank, bool)]
    if wrong:
        raise ValueError(f"field 'ranks': expected whole numbers, got {wrong[0]!r}")
    competition = [1 + sum(other < rank for other in ranks) for rank in ranks]
    if list(ranks) not in (dense(ranks), competition):
        raise ValueError(f"field 'ranks': {list(ranks)} is no ranking; {dense(ranks)} would be")


def dense(ranks: Sequence[float]) -> list[int]:
    """The same weak order with ranks 1, 2, 3 and so on, none left out: (1, 2, 2, 4) gives (1, 2, 2, 3)."""
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), 1)}
    return [places[rank] for rank in ranks]


def read_preferences(path: str | os.PathLike[str]) -> Iterator[Comparison]:
    """Comparisons of a JSON-lines file with `messages`, `responses` and `ranks` on each line.

    Args:
        path: the file; a response is `{"content": text, "ended": true, ...}`, and further keys end up in `extra`. A
            line may also have `margins`, a list of `[better, worse, margin]`.

    Returns:
        Iterator of comparisons.

    Raises:
        ValueError: `path:line: ...` for a bad line.
    """
    for where, messages, record in read_messages(path):
        check_prompt(messages, where)
        responses, ranks = read_responses(record, where), field_of(record, "ranks", list, where)
        margins = field_of(record, "margins", list, where) if "margins" in record else []
        known = ("messages", "responses", "ranks", "margins")
        extra = {key: value for key, value in record.items() if key not in known}
        try:
            comparison = Comparison(messages=messages, responses=responses, ranks=ranks, margins=margins, extra=extra)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        yield comparison


def render_response(messages: Sequence[Message], response: Response, tokenizer: Tokenizer) -> list[int]:
    """Tokens of prompt and response; the end token only if the response ended."""
    return render_prompt(messages, tokenizer) + tokenizer.encode(response.content) + [tokenizer.end_id] * response.ended


def reward_batch(
    comparisons: Sequence[Comparison], tokenizer: Tokenizer, row_tokens: int, *, candidates: int | None = None
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
    tokens_BCT, lengths_BC, report = candidate_rows(comparisons, tokenizer, row_tokens, candidates)
    ranks_BC = np.zeros(lengths_BC.shape, np.int32)
    margins_BCC = np.zeros((*lengths_BC.shape, lengths_BC.shape[1]), np.float32)
    for row, index in enumerate(report.kept):
        ranks_BC[row, : len(comparisons[index].ranks)] = dense(comparisons[index].ranks)
        for better, worse, margin in comparisons[index].margins:
            margins_BCC[row, better, worse] = margin
    batch = RewardBatch(
        tokens_BCT=tokens_BCT,
        lengths_BC=lengths_BC,
        ranks_BC=ranks_BC,
        margins_BCC=margins_BCC if margins_BCC.any() else None,
    )
    return batch, report


def candidate_rows(
    prompts: Sequence[Answered], tokenizer: Tokenizer, row_tokens: int, candidates: int | None
) -> tuple[np.ndarray, np.ndarray, RewardReport]:
    """(tokens_BCT, lengths_BC, report): what ranked and rated responses have in common; see `reward_batch`."""
    most = max((len(prompt.responses) for prompt in prompts), default=0)
    if candidates is not None and most > candidates:
        raise ValueError(f"a comparison has {most} responses, more than candidates={candidates}")
    rendered = [[render_response(p.messages, response, tokenizer) for response in p.responses] for p in prompts]
    longest = [max(map(len, group)) for group in rendered]
    kept = tuple(index for index, length in enumerate(longest) if length <= row_tokens)
    if not kept:
        shortest = min(longest, default=0)
        raise ValueError(f"none of {len(rendered)} comparisons fits {row_tokens} tokens; the shortest needs {shortest}")
    shape = (len(kept), candidates or most, row_tokens)
    tokens_BCT, lengths_BC = padded([rendered[index] for index in kept], shape, tokenizer.pad_id)
    responses = [response for index in kept for response in prompts[index].responses]
    report = RewardReport(
        comparisons=len(rendered),
        dropped=len(rendered) - len(kept),
        kept=kept,
        responses=len(responses),
        unended=sum(not response.ended for response in responses),
    )
    return tokens_BCT, lengths_BC, report


def padded(
    rendered: Sequence[Sequence[Sequence[int]]], shape: tuple[int, int, int], pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens_BCT, lengths_BC) of B prompts with up to C candidates each, padded on the right to `shape`."""
    tokens_BCT = np.full(shape, pad_id, np.int32)
    lengths_BC = np.zeros(shape[:2], np.int32)
    for row, candidates in enumerate(rendered):
        for column, ids in enumerate(candidates):
            tokens_BCT[row, column, : len(ids)] = ids
            lengths_BC[row, column] = len(ids)
    return tokens_BCT, lengths_BC


def read_responses(record: dict[str, Any], where: str) -> list[Response]:
    """The `responses` of a line; `where` is its file:line."""
    entries = field_of(record, "responses", list, where)
    return [_response(entry, f"{where}: responses[{index}]") for index, entry in enumerate(entries)]


def _response(entry: Any, where: str) -> Response:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object, got {type(entry).__name__}")
    content = field_of(entry, "content", str, where)
    ended = entry.get("ended", True)
    if not isinstance(ended, bool):
        raise ValueError(f"{where}: field 'ended': expected true or false, got {ended!r}")
    extra = {key: value for key, value in entry.items() if key not in ("content", "ended")}
    try:
        return Response(content=content, ended=ended, extra=extra)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_margin(entry: Any, ranks: Sequence[int]) -> None:
    if not isinstance(entry, list | tuple) or len(entry) != 3 or any(isinstance(value, bool) for value in entry):
        raise ValueError(f"field 'margins': expected [better, worse, margin], got {entry!r}")
    better, worse, margin = entry
    inside = [isinstance(index, int) and 0 <= index < len(ranks) for index in (better, worse)]
    if not all(inside):
        raise ValueError(f"field 'margins': {entry!r} names no two of the {len(ranks)} responses, which count from 0")
    if ranks[better] >= ranks[worse]:
        raise ValueError(f"field 'margins': {entry!r}: response {better} is not ranked above response {worse}")
    if not isinstance(margin, int | float) or not 0.0 <= margin < math.inf:
        raise ValueError(f"field 'margins': {entry!r}: expected a margin of at least 0, got {margin!r}")
