"""How gold reward depends on the distance from the initial policy, d = sqrt(KL): Gao's two forms, their fits and peaks.

Rewards are gains over the initial policy, so both forms pass through 0 at d = 0; d is in square roots of nats.

Source: Gao et al. 2022, arXiv:2210.10760, section 1 (forms) and section 4.3 (iterated).
"""

import math
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

Method: TypeAlias = Literal["best_of_n", "rl"]


class GaoFit(NamedTuple):
    """alpha, beta: the form's coefficients.  rms: root mean square of what the form leaves unexplained."""

    alpha: float
    beta: float
    rms: float


class Peak(NamedTuple):
    """Distance at which gold reward is largest, and the reward there."""

    distance: float
    reward: float


def gold_reward(method: Method, d: np.ndarray, alpha: float, beta: float, *, rounds: int = 1) -> np.ndarray:
    """Gold reward at distance d: d (alpha - beta d) for best-of-n, d (alpha - beta log d) for reinforcement learning.

    Args:
        method: which form.
        d: f64[...], square root of the KL from the initial policy.
        alpha: slope (reward per distance).
        beta: how fast the slope falls.
        rounds: reward models trained one after another on the newest policy's samples; with reinforcement learning
            they add beta d log(rounds).

    Returns:
        f64[...].

    Raises:
        ValueError: a distance is negative, or there are several rounds of best-of-n.
    """
    alpha_term, beta_term = _basis(method, np.asarray(d, float), rounds)
    return alpha * alpha_term + beta * beta_term


def fit(method: Method, d: np.ndarray, reward: np.ndarray, *, rounds: int = 1) -> GaoFit:
    """Least squares; both forms are linear in alpha and beta.

    Args:
        method: which form.
        d: f64[n], distances.
        reward: f64[n], gains over the initial policy.
        rounds: see `gold_reward`.

    Raises:
        ValueError: fewer than two different positive distances, or values that are not finite.
    """
    d, reward = np.asarray(d, float), np.asarray(reward, float)
    if not (np.isfinite(d).all() and np.isfinite(reward).all()):
        raise ValueError("distances and rewards must be finite")
    if len(np.unique(d[d > 0])) < 2:
        raise ValueError(f"a fit needs at least 2 different positive distances, got {sorted(set(d.tolist()))}")
    basis = np.stack(_basis(method, d, rounds), axis=1)
    coefficients, *_ = np.linalg.lstsq(basis, reward, rcond=None)
    residual = reward - basis @ coefficients
    return GaoFit(float(coefficients[0]), float(coefficients[1]), float(np.sqrt(np.mean(residual**2))))


def peak(method: Method, alpha: float, beta: float) -> Peak:
    """Where gold reward is largest: d = alpha / (2 beta), or exp(alpha / beta - 1) with reward beta d.

    Raises:
        ValueError: alpha or beta is not positive, so there is no peak at a positive distance.
    """
    if beta <= 0 or alpha <= 0:
        raise ValueError(f"there is a peak only if alpha and beta are positive, got alpha {alpha}, beta {beta}")
    if method == "best_of_n":
        return Peak(alpha / (2 * beta), alpha**2 / (4 * beta))
    distance = math.exp(alpha / beta - 1)
    return Peak(distance, beta * distance)


def _basis(method: Method, d: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """What alpha and beta are multiplied with."""
    if (d < 0).any():
        raise ValueError(f"distances must not be negative, got {d.min()}")
    if method == "best_of_n":
        if rounds != 1:
            raise ValueError(f"best-of-n has one round, got {rounds}")
        return d, -(d**2)
    return d, -d * np.log(np.where(d > 0, d, 1.0) / rounds)
