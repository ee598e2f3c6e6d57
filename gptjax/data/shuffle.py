"""A permutation of any size that is computed place by place, without a table."""

import numpy as np

_ROUNDS = 8
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def permuted(places: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of 0..n-1 sends some places; another permutation for each (seed, epoch).

    Args:
        places: i64[count], in [0, n).
        n: size of the permutation, at most 2^62.
        seed, epoch: not negative, below 2^63.

    Returns:
        i64[count].

    Source: a Feistel network over the next power of four, walked until it lands below n (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains", section 4); rounds by the finaliser of SplitMix64 (Steele et al. 2014).
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(_ROUNDS)
    found = _network(places.astype(np.uint64), half, keys)
    while (outside := found >= n).any():  # fewer than three of four, so this ends soon
        found[outside] = _network(found[outside], half, keys)
    return found.astype(np.int64)


def stream(start: int, count: int, n: int, seed: int) -> np.ndarray:
    """Places start..start+count of an endless stream of n rows, shuffled anew in each epoch.

    Args:
        start: first place, from 0.
        count: how many.
        n: rows of an epoch, each of which comes once in it.
        seed: of the order.

    Returns:
        i64[count], row at each place.
    """
    places = np.arange(start, start + count, dtype=np.int64)
    epochs = places // n
    rows = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = permuted(places[here] % n, n, seed, int(epoch))
    return rows


def _network(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << half) | right


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIERS[1]
    return x ^ (x >> np.uint64(31))
