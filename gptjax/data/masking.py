"""Masked language modelling: which tokens are hidden and from what, as a function of (seed, place in the stream)."""

import dataclasses

import numpy as np

from gptjax.types import LmBatch

HIDDEN, RANDOM = 0.8, 0.1  # of the selected tokens; the remaining tenth stays as it is
_DRAWS = 3  # numbers per token: is it selected, what happens to it, which random token


def corrupted(
    tokens: np.ndarray,
    selectable: np.ndarray,
    u_select: np.ndarray,
    u_operation: np.ndarray,
    random_ids: np.ndarray,
    *,
    mask_id: int,
    fraction: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens with some of them hidden, and which were selected.

    Args:
        tokens: i32[...].
        selectable: bool[...], false at special tokens and padding.
        u_select: f64[...], in [0, 1): the token is selected below `fraction`.
        u_operation: f64[...], in [0, 1): below 0.8 `mask_id`, below 0.9 the random id, else the token itself.
        random_ids: i32[...].
        mask_id: stands for a hidden token.
        fraction: expected share of the selectable tokens.

    Returns:
        (corrupted i32[...], selected bool[...]).

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    selected = selectable & (u_select < fraction)
    replacement = np.where(u_operation < HIDDEN, mask_id, np.where(u_operation < HIDDEN + RANDOM, random_ids, tokens))
    return np.where(selected, replacement, tokens).astype(np.int32), selected


def masked(
    rows: LmBatch, place: int, seed: int, *, special_V: np.ndarray, mask_id: int, fraction: float = 0.15
) -> LmBatch:
    """The rows as a masked language model sees them: targets are the selected tokens themselves, not the next ones.

    Row b draws from counter place + b of one stream of random numbers, so a row that comes back in a later epoch, at a
    later place, is masked anew, and any cut of a batch over hosts gives the same masks.

    Args:
        rows: packed rows; their targets and weights are replaced.
        place: of the first row in the endless stream of training rows.
        seed: of the stream.
        special_V: bool[V], tokens that are neither selected nor put in place of others.
        mask_id: stands for a hidden token.
        fraction: expected share of the other tokens that is selected, in (0, 1].

    Returns:
        Rows whose weights are 1 at the selected tokens and 0 elsewhere.

    Raises:
        ValueError: `fraction` lies outside (0, 1], or every token is special.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"the fraction of masked tokens must lie in (0, 1], got {fraction}")
    ordinary = np.flatnonzero(~special_V)
    if not len(ordinary):
        raise ValueError(f"all {len(special_V)} tokens of the vocabulary are special: there is nothing to mask")
    u_select, u_operation, u_id = _uniform(rows.tokens_BT.shape, place, seed)
    tokens_BT, selected_BT = corrupted(
        rows.tokens_BT,
        (rows.segments_BT > 0) & ~special_V[rows.tokens_BT],
        u_select,
        u_operation,
        ordinary[(u_id * len(ordinary)).astype(np.int64)],
        mask_id=mask_id,
        fraction=fraction,
    )
    return dataclasses.replace(
        rows, tokens_BT=tokens_BT, targets_BT=rows.tokens_BT, weights_BT=selected_BT.astype(np.float32)
    )


def _uniform(shape: tuple[int, int], place: int, seed: int) -> np.ndarray:
    """f64[3, B, T] in [0, 1): 53 bits of Philox each; NumPy guarantees the stream of a bit generator for all releases.

    Philox makes four numbers per count, so each row owns the same whole number of counts.
    """
    n_rows, length = shape
    counts = -(-_DRAWS * length // 4)
    key = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(2, np.uint64)  # not the key of the rows' order
    raw = np.random.Philox(key=key, counter=place * counts).random_raw(n_rows * counts * 4)
    draws = raw.reshape(n_rows, counts * 4)[:, : _DRAWS * length].reshape(n_rows, _DRAWS, length)
    return (draws >> np.uint64(11)).swapaxes(0, 1) * 2.0**-53
