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
