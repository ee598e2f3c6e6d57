"""The candidates of a reward batch as a step takes them: several to a row, each a segment of its own."""

import dataclasses

import numpy as np

from gptjax.data.loader import host_share, n_rows, row_indices
from gptjax.data.packing import best_fit, spans
from gptjax.types import PackedCandidates, RatingBatch, RewardBatch


def packed(
    batch: RewardBatch | RatingBatch,
    row_tokens: int,
    *,
    rows: int = 1,
    multiple: int = 1,
    host: int = 0,
    n_hosts: int = 1,
) -> PackedCandidates:
    """Pack the candidates of a global batch into rows, so that a step computes next to no padding.

    Args:
        batch: prompts with their candidates, on the host.
        row_tokens: tokens per row (T) of the result; the longest candidate must fit.
        rows: rows to make, the same for every batch so that a step is compiled once; a batch that needs more gets more.
        multiple: what the number of rows is rounded up to.
        host: this host; it gets a contiguous share of the rows and of the prompts.
        n_hosts: hosts that share the batch; each packs all of it, so that their number changes nothing.

    Returns:
        Rows i32[rows / n_hosts, T]; the prompts, their candidates and what was judged keep their order.

    Raises:
        ValueError: a candidate is longer than a row.
    """
    lengths_BC = np.asarray(batch.lengths_BC)
    present_BC = lengths_BC > 0
    sizes = lengths_BC[present_BC].astype(np.int64)
    if sizes.max(initial=0) > row_tokens:
        raise ValueError(f"row_tokens {row_tokens} is too small: a candidate has {sizes.max()} tokens")
    row, offset, segment, needed = best_fit(sizes, row_tokens)
    shape = (-(-max(rows, needed) // multiple) * multiple, row_tokens)
    first = row * row_tokens + offset
    place = spans(first, sizes)

    def filled(values: np.ndarray) -> np.ndarray:
        out_BT = np.zeros(shape, np.int32)
        out_BT.reshape(-1)[place] = values
        return out_BT

    real_BCT = np.arange(batch.tokens_BCT.shape[2]) < lengths_BC[:, :, None]
    last_BC = np.zeros(lengths_BC.shape, np.int32)
    last_BC[present_BC] = first + sizes - 1
    whole = PackedCandidates(
        tokens_BT=filled(batch.tokens_BCT[real_BCT]),
        segments_BT=filled(np.repeat(segment, sizes)),
        positions_BT=filled(spans(np.zeros_like(sizes), sizes)),
        last_BC=last_BC,
        judged=dataclasses.replace(batch, tokens_BCT=None),
    )
    return host_share(whole, host, n_hosts)


def rows_needed(lengths_BC: np.ndarray, row_tokens: int) -> int:
    """Rows of `row_tokens` tokens that candidates of these lengths (i32[B, C], 0 = none) are packed into."""
    return best_fit(lengths_BC[lengths_BC > 0].astype(np.int64), row_tokens)[3]


def epoch_rows(
    data: RewardBatch | RatingBatch, batch_size: int, seed: int, row_tokens: int, *, most_batches: int = 256
) -> int:
    """The most rows that any batch of the first epoch needs.

    Args:
        data: the data set.
        batch_size, seed: as given to `batch_at`.
        row_tokens: tokens per row.
        most_batches: of the epoch are looked at.
    """
    n = n_rows(data)
    starts = range(0, min(n, most_batches * batch_size), batch_size)
    return max(rows_needed(data.lengths_BC[row_indices(n, at, batch_size, seed)], row_tokens) for at in starts)
