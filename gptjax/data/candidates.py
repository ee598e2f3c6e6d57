"""The candidates of a reward batch as a step takes them: several to a row, each a segment of its own."""

import dataclasses

import numpy as np

from gptjax.data.loader import EVERYTHING, Share, n_rows, own_rows, row_indices
from gptjax.data.packing import best_fit, spans
from gptjax.types import PackedCandidates, RatingBatch, RewardBatch


def packed(
    batch: RewardBatch | RatingBatch,
    row_tokens: int,
    *,
    rows: int = 1,
    multiple: int = 1,
    microbatches: int = 1,
    share: Share = EVERYTHING,
) -> PackedCandidates:
    """Pack the candidates of a global batch into rows, so that a step computes next to no padding.

    Args:
        batch: prompts with their candidates, on the host.
        row_tokens: tokens per row (T) of the result; the longest candidate must fit.
        rows: rows to make for each microbatch, the same for every batch so that a step is compiled once; one that
            needs more gets more.
        multiple: what that number is rounded up to.
        microbatches: packed apart, so that a row and its prompts belong to the same one; microbatch n has every
            `microbatches`-th prompt from n on, and those rows.
        share: what this host gets of the rows and of the prompts; each packs all, so that their number changes nothing.

    Returns:
        Rows i32[rows x microbatches, T], or the share of them; prompts and candidates keep their order.

    Raises:
        ValueError: a candidate is longer than a row.
    """
    lengths_BC = np.asarray(batch.lengths_BC)
    if lengths_BC.max(initial=0) > row_tokens:
        raise ValueError(f"row_tokens {row_tokens} is too small: a candidate has {lengths_BC.max()} tokens")
    present_BC, real_BCT = lengths_BC > 0, np.arange(batch.tokens_BCT.shape[2]) < lengths_BC[:, :, None]
    pieces = [slice(number, None, microbatches) for number in range(microbatches)]
    sizes = [lengths_BC[own][present_BC[own]].astype(np.int64) for own in pieces]
    places = [best_fit(some, row_tokens) for some in sizes]
    height = -(-max(rows, *(needed for *_, needed in places)) // multiple) * multiple
    tokens_BT, segments_BT, positions_BT = (np.zeros((height * microbatches, row_tokens), np.int32) for _ in range(3))
    last_BC = np.zeros(lengths_BC.shape, np.int32)
    for number, (own, some, (row, offset, segment, _)) in enumerate(zip(pieces, sizes, places, strict=True)):
        first = (row * microbatches + number) * row_tokens + offset
        place = spans(first, some)
        tokens_BT.reshape(-1)[place] = batch.tokens_BCT[own][real_BCT[own]]
        segments_BT.reshape(-1)[place] = np.repeat(segment, some)
        positions_BT.reshape(-1)[place] = spans(np.zeros_like(some), some)
        last_BC[own][present_BC[own]] = first + some - 1
    whole = PackedCandidates(
        tokens_BT=tokens_BT,
        segments_BT=segments_BT,
        positions_BT=positions_BT,
        last_BC=last_BC,
        judged=dataclasses.replace(batch, tokens_BCT=None),
    )
    return own_rows(whole, share)


def rows_needed(lengths_BC: np.ndarray, row_tokens: int) -> int:
    """Rows of `row_tokens` tokens that candidates of these lengths (i32[B, C], 0 = none) are packed into."""
    return best_fit(lengths_BC[lengths_BC > 0].astype(np.int64), row_tokens)[3]


def epoch_rows(
    data: RewardBatch | RatingBatch,
    batch_size: int,
    seed: int,
    row_tokens: int,
    *,
    microbatches: int = 1,
    most_batches: int = 256,
) -> int:
    """The most rows that any microbatch of the first epoch needs.

    Args:
        data: the data set.
        batch_size, seed: as given to `batch_at`.
        row_tokens: tokens per row.
        microbatches: of a batch, packed apart.
        most_batches: of the epoch are looked at.
    """
    n = n_rows(data)
    starts = range(0, min(n, most_batches * batch_size), batch_size)
    batches = (data.lengths_BC[row_indices(n, at, batch_size, seed)] for at in starts)
    return max(rows_needed(some[own::microbatches], row_tokens) for some in batches for own in range(microbatches))
