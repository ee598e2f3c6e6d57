"""Win rate of one policy over another from pairwise judgements, each pair shown in both orders."""

import math
from typing import NamedTuple

import numpy as np

from gptjax.eval.intervals import wilson


class WinRate(NamedTuple):
    """rate: wins plus half of the ties, over all judgements.  standard_error: clustered by prompt.

    low, high: 95 % Wilson interval at the number of independent judgements that the standard error speaks of.
    order_disagreement: share of pairs whose two judgements, one for each order, differ.  ties: share of judgements.
    """

    rate: float
    standard_error: float
    low: float
    high: float
    order_disagreement: float
    ties: float


def win_rate(first_BN: np.ndarray, second_BN: np.ndarray, *, z: float = 1.959964) -> WinRate:
    """Win rate with its uncertainty.

    Judgements of one prompt tell much the same, so prompts are what is counted: the standard error is that of the mean
    of prompt means, and the interval is Wilson's at the n for which rate (1 - rate) / n is its square.

    Args:
        first_BN: f64[B, N], outcome of N pairs of answers to each of B prompts when the policy's answer is shown
            first: 1 won, 0.5 tied, 0 lost.
        second_BN: f64[B, N], the same pairs with the policy's answer shown second.
        z: half-width in standard errors.

    Raises:
        ValueError: shapes differ, an outcome is another number, or there are fewer than two prompts.

    Source: Wilson 1927; Miller 2024, arXiv:2411.00640 (clustered standard errors of evaluations).
    """
    first_BN, second_BN = np.asarray(first_BN, float), np.asarray(second_BN, float)
    if first_BN.shape != second_BN.shape or first_BN.ndim != 2 or len(first_BN) < 2:
        raise ValueError(f"both orders need the same [B >= 2, N] outcomes, got {first_BN.shape} and {second_BN.shape}")
    both_BN = np.concatenate([first_BN, second_BN], axis=1)
    if not np.isin(both_BN, (0.0, 0.5, 1.0)).all():
        raise ValueError("an outcome must be 1 (won), 0.5 (tied) or 0 (lost)")
    means_B = both_BN.mean(axis=1)
    rate = float(means_B.mean())
    error = float(means_B.std(ddof=1)) / math.sqrt(len(means_B))
    count = rate * (1 - rate) / error**2 if error > 0 and 0 < rate < 1 else float(len(means_B))
    low, high = wilson(rate, count, z=z)
    disagreement = float(np.mean(first_BN != second_BN))
    return WinRate(rate, error, low, high, disagreement, float(np.mean(both_BN == 0.5)))


def comparisons_needed(half_width: float, *, rate: float = 0.5, z: float = 1.959964) -> int:
    """Independent judgements without ties that make the interval +- half_width: z^2 rate (1 - rate) / half_width^2."""
    if half_width <= 0:
        raise ValueError(f"half_width must be positive, got {half_width}")
    return math.ceil(z**2 * rate * (1 - rate) / half_width**2)


def length_controlled(outcome_BN: np.ndarray, tokens_BN: np.ndarray, other_tokens_BN: np.ndarray) -> float:
    """The win rate that the judge would give to answers of equal length.

    A logistic regression of the outcome on a constant and tanh of the standardised difference of lengths; the rate is
    the fit's where the difference is 0. Its second coefficient has a weak prior, so a constant difference, whose share
    in the outcome cannot be told, is not blamed for it.

    Args:
        outcome_BN: f64[B, N], 1 won, 0.5 tied, 0 lost.
        tokens_BN: f64[B, N], length of the policy's answer (tokens).
        other_tokens_BN: f64[B, N], length of the answer that it was compared with.

    Raises:
        ValueError: shapes differ.

    Source: Dubois et al. 2024, arXiv:2404.04475, section 3 (without its terms for the prompt).
    """
    outcome_BN, tokens_BN, other_tokens_BN = (np.asarray(x, float) for x in (outcome_BN, tokens_BN, other_tokens_BN))
    if not outcome_BN.shape == tokens_BN.shape == other_tokens_BN.shape:
        shapes = outcome_BN.shape, tokens_BN.shape, other_tokens_BN.shape
        raise ValueError(f"each judgement needs two lengths, got shapes {shapes}")
    difference = (tokens_BN - other_tokens_BN).ravel()
    x = np.stack([np.ones_like(difference), np.tanh(difference / max(float(difference.std()), 1e-9))], axis=1)
    prior = np.array([1e-3, 1e-1])
    weights = np.zeros(2)
    for _ in range(50):  # Newton's method; the prior keeps separable outcomes finite
        p = 1.0 / (1.0 + np.exp(-x @ weights))
        slope = x.T @ (outcome_BN.ravel() - p) - prior * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(prior)
        weights += np.linalg.solve(curvature, slope)
    return float(1.0 / (1.0 + np.exp(-weights[0])))
