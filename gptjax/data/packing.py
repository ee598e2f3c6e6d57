"""Documents packed into rows of one length, several to a row, with targets shifted on the host."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from gptjax.types import LmBatch

Long: TypeAlias = Literal["split", "truncate", "drop"]


@dataclass(frozen=True, kw_only=True)
class PackingReport:
    """What became of the documents.

    documents: given.  dropped_tokens: lost by truncating and dropping.  rows: made.
    fill: share of the rows' places that hold a token.
    """

    documents: int
    dropped_tokens: int
    rows: int
    fill: float


def pack(
    documents: Sequence[Sequence[int]],
    row_tokens: int,
    *,
    loss_masks: Sequence[Sequence[int]] | None = None,
    pad_id: int = 0,
    long: Long = "split",
) -> tuple[LmBatch, PackingReport]:
    """Pack documents into rows: each, longest first, goes to the fullest row that still has room for it.

    A document that is split keeps all its targets: the last token of a piece has the first token of the next piece as
    target, though that token is in another row.

    Args:
        documents: token ids of each document, BOS included if there is one.
        row_tokens: tokens per row (T).
        loss_masks: per document one 0/1 per token: whether the token is to be learnt as a target; None learns all.
        pad_id: fills the places that are left over.
        long: what happens to documents of more than T tokens.

    Returns:
        (rows, report); the arrays of `rows` are [rows, T].

    Raises:
        ValueError: a size or a mask is wrong, an id is negative or above 31 bits, or no document is left.

    Source: best-fit decreasing, Johnson et al. 1974; Ding et al. 2024, arXiv:2404.10830 (packing without truncation).
    """
    _check(documents, row_tokens, loss_masks, long)
    sizes = np.array([len(document) for document in documents], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    pieces = _Pieces.of(sizes, starts, row_tokens, long)
    if not len(pieces.sizes):
        raise ValueError(f"no document is left of {len(sizes)}: all are empty or longer than {row_tokens} tokens")
    tokens = _flat(documents, np.int64)
    if tokens.min() < 0 or tokens.max() >= 2**31:
        raise ValueError(f"token ids must lie in 0..{2**31 - 1}, got {tokens.min()}..{tokens.max()}")
    learnt = np.ones(len(tokens), np.float32) if loss_masks is None else _flat(loss_masks, np.float32)
    batch = _rows(tokens, learnt, pieces, row_tokens, pad_id)
    return batch, _report(sizes, pieces, len(batch.tokens_BT), row_tokens)


def weighted_by_segment(rows: LmBatch) -> LmBatch:
    """The rows with each target's weight divided by the weights of its segment: every segment counts as one.

    A weighted mean over targets becomes the mean over documents of their own means.

    Args:
        rows: packed rows.

    Returns:
        The same rows; the weights of a segment with a target sum to 1.
    """
    n_segments = int(rows.segments_BT.max()) + 1
    row_B1 = np.arange(len(rows.segments_BT))[:, None]
    segment_BT = row_B1 * n_segments + rows.segments_BT
    totals = np.bincount(segment_BT.ravel(), rows.weights_BT.ravel().astype(np.float64))
    shares_BT = rows.weights_BT / np.maximum(totals[segment_BT], 1e-30)
    return dataclasses.replace(rows, weights_BT=shares_BT.astype(np.float32))


def best_fit(sizes: np.ndarray, row_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Where each piece goes: longest first, to the fullest row that still has room for it.

    Args:
        sizes: i64[pieces], tokens of each, 1 to row_tokens.
        row_tokens: tokens per row (T).

    Returns:
        (rows, offsets, segments, n_rows): row of each piece, column of its first token, its segment number (from 1 in
        each row), and the number of rows.
    """
    rows, offsets, segments = (np.zeros(len(sizes), np.int64) for _ in range(3))
    with_room: list[list[int]] = [[] for _ in range(row_tokens + 1)]
    occupied = 0  # bit r: some row has room for exactly r more tokens
    n_segments: list[int] = []
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        fitting = occupied >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                occupied ^= 1 << room
        else:
            room, row = row_tokens, len(n_segments)
            n_segments.append(0)
        n_segments[row] += 1
        rows[piece], offsets[piece], segments[piece] = row, row_tokens - room, n_segments[row]
        with_room[room - size].append(row)
        occupied |= 1 << (room - size)
    return rows, offsets, segments, len(n_segments)


def spans(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The ranges start..start+size of all spans, one after the other.

    Args:
        starts, sizes: i64[spans].

    Returns:
        i64[sum of sizes].
    """
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(sizes.sum())


@dataclass(frozen=True)
class _Pieces:
    """Stretches of the concatenated documents; `ends` is where the piece's document ends."""

    starts: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, sizes: np.ndarray, starts: np.ndarray, row_tokens: int, long: Long) -> "_Pieces":
        begins = starts[:-1]
        if long == "split":
            counts = -(-sizes // row_tokens)
            nth = spans(np.zeros_like(counts), counts)
            begins = np.repeat(begins, counts) + nth * row_tokens
            ends = np.repeat(starts[1:], counts)
            return cls(begins, np.minimum(ends - begins, row_tokens), ends)
        kept = sizes > 0 if long == "truncate" else (sizes > 0) & (sizes <= row_tokens)
        cut = np.minimum(sizes[kept], row_tokens)
        return cls(begins[kept], cut, begins[kept] + cut)


def _rows(tokens: np.ndarray, learnt: np.ndarray, pieces: _Pieces, row_tokens: int, pad_id: int) -> LmBatch:
    """Lay the pieces of the concatenated `tokens` out in rows."""
    rows, offsets, segments, n_rows = best_fit(pieces.sizes, row_tokens)
    place = spans(rows * row_tokens + offsets, pieces.sizes)
    source = spans(pieces.starts, pieces.sizes)
    following = np.minimum(source + 1, len(tokens) - 1)
    has_next = source + 1 < np.repeat(pieces.ends, pieces.sizes)

    def filled(values: np.ndarray, fill: int, dtype: type) -> np.ndarray:
        out = np.full((n_rows, row_tokens), fill, dtype)
        out.reshape(-1)[place] = values
        return out

    return LmBatch(
        tokens_BT=filled(tokens[source], pad_id, np.int32),
        targets_BT=filled(np.where(has_next, tokens[following], pad_id), pad_id, np.int32),
        segments_BT=filled(np.repeat(segments, pieces.sizes), 0, np.int32),
        positions_BT=filled(spans(np.zeros_like(pieces.sizes), pieces.sizes), 0, np.int32),
        weights_BT=filled(np.where(has_next, learnt[following], 0.0), 0, np.float32),
    )


def _flat(lists: Sequence[Sequence[int]], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(entry, dtype) for entry in lists])


def _report(sizes: np.ndarray, pieces: _Pieces, n_rows: int, row_tokens: int) -> PackingReport:
    tokens = int(pieces.sizes.sum())
    return PackingReport(
        documents=len(sizes),
        dropped_tokens=int(sizes.sum()) - tokens,
        rows=n_rows,
        fill=tokens / (n_rows * row_tokens),
    )


def _check(
    documents: Sequence[Sequence[int]], row_tokens: int, loss_masks: Sequence[Sequence[int]] | None, long: str
) -> None:
    if row_tokens < 2:
        raise ValueError(f"row_tokens {row_tokens} is too small: a row needs 2 tokens to hold a target")
    if long not in ("split", "truncate", "drop"):
        raise ValueError(f"long={long!r}: choose split, truncate or drop")
    if loss_masks is None:
        return
    if len(loss_masks) != len(documents):
        raise ValueError(f"{len(documents)} documents but {len(loss_masks)} loss masks")
    for index, (document, mask) in enumerate(zip(documents, loss_masks, strict=True)):
        if len(document) != len(mask):
            raise ValueError(f"document {index} has {len(document)} tokens but its loss mask has {len(mask)}")
