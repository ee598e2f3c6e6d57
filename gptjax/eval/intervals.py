"""Means with intervals that know which observations belong together."""

import math

import numpy as np


def clustered_mean(values_BN: np.ndarray, *, z: float = 1.959964) -> tuple[float, float, float]:
    """(mean, low, high): the mean over prompts and a 95 % normal interval, standard error clustered by prompt.

    Args:
        values_BN: float[B, N], N observations for each of B prompts (clusters of equal size).
        z: half-width in standard errors.

    Raises:
        ValueError: fewer than two prompts.
    """
    means_B = np.asarray(values_BN, float).mean(axis=1)
    if len(means_B) < 2:
        raise ValueError(f"an interval needs at least 2 prompts, got {len(means_B)}")
    mean = float(means_B.mean())
    half = z * float(means_B.std(ddof=1)) / math.sqrt(len(means_B))
    return mean, mean - half, mean + half


def wilson(rate: float, n: float, *, z: float = 1.959964) -> tuple[float, float]:
    """(low, high): Wilson's 95 % interval of a rate seen in n independent trials; within [0, 1], also at 0 and 1.

    Args:
        rate: observed share, in [0, 1].
        n: trials; need not be whole.
        z: half-width in standard errors.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if not 0.0 <= rate <= 1.0 or n <= 0:
        raise ValueError(f"a rate in [0, 1] of a positive number of trials is needed, got {rate} of {n}")
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
