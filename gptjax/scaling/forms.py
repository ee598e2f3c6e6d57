"""Other forms of a scaling law: loss over compute alone, Kaplan's form, and repeated data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares as minimize_squares
from scipy.optimize import minimize_scalar

from gptjax.scaling.law import Law


@dataclass(frozen=True, kw_only=True)
class OffsetPowerLaw:
    """L(C) = E + K / C^gamma."""

    E: float
    K: float
    gamma: float

    def loss(self, c: Any) -> Any:
        """Loss (nats) at compute C."""
        return self.E + self.K * np.power(1.0 / np.asarray(c, np.float64), self.gamma)


def offset_power_law(c: np.ndarray, loss: np.ndarray) -> OffsetPowerLaw:
    """Least squares of L(C) with E not negative; gamma by search, E and K by projection.

    Raises:
        ValueError: fewer than four points.
    """
    if len(c) < 4:
        raise ValueError(f"L(C) has 3 parameters: {len(c)} points are too few")
    log_c = np.log(c) - np.log(c).mean()

    def solved(gamma: float) -> tuple[float, float, float]:
        """(cost, E, K) at the centre."""
        x = np.exp(-gamma * log_c)
        centred = x - x.mean()
        k = float(centred @ loss / max(centred @ centred, 1e-300))
        e = float(loss.mean() - k * x.mean())
        if e < 0:
            e, k = 0.0, float(x @ loss / (x @ x))
        return float(((loss - e - k * x) ** 2).sum()), e, k

    grid = np.geomspace(0.005, 3.0, 400)
    best = int(np.argmin([solved(gamma)[0] for gamma in grid]))
    bounds = (grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)])
    gamma = minimize_scalar(
        lambda value: solved(value)[0], bounds=bounds, method="bounded", options={"xatol": 1e-14}
    ).x  # fmt: skip
    _, e, k = solved(gamma)
    return OffsetPowerLaw(E=e, K=k * float(np.exp(gamma * np.log(c).mean())), gamma=float(gamma))


@dataclass(frozen=True, kw_only=True)
class KaplanLaw:
    """L = ((N_c / N)^(alpha_n / alpha_d) + D_c / D)^alpha_d.

    Source: Kaplan et al. 2020, arXiv:2001.08361, equation 1.5.
    """

    n_c: float
    alpha_n: float
    d_c: float
    alpha_d: float

    def loss(self, n: Any, d: Any) -> Any:
        """Loss (nats) at N parameters (their paper: without embeddings) and D tokens."""
        ratio = self.alpha_n / self.alpha_d
        return (np.power(self.n_c / n, ratio) + self.d_c / np.asarray(d, np.float64)) ** self.alpha_d


def kaplan_law(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> KaplanLaw:
    """Least squares of Kaplan's form on log loss, from several starts.

    Raises:
        ValueError: fewer than five points.
    """
    if len(n) < 5:
        raise ValueError(f"Kaplan's form has 4 parameters: {len(n)} points are too few")
    n0, d0, target = np.log(n).mean(), np.log(d).mean(), np.log(loss)

    def residual(theta: np.ndarray) -> np.ndarray:
        u, log_alpha_n, v, log_alpha_d = theta
        alpha_n, alpha_d = np.exp(log_alpha_n), np.exp(log_alpha_d)
        terms = np.logaddexp((u - np.log(n) + n0) * alpha_n / alpha_d, v - np.log(d) + d0)
        return alpha_d * terms - target

    starts = [
        np.array([target.mean() / a, np.log(a), target.mean() / b, np.log(b)])
        for a in (0.03, 0.08, 0.2, 0.5)
        for b in (0.03, 0.1, 0.3)
    ]
    best = _best(residual, starts)
    alpha_n, alpha_d = np.exp(best[1]), np.exp(best[3])
    return KaplanLaw(
        n_c=float(np.exp(best[0] + n0)), alpha_n=float(alpha_n), d_c=float(np.exp(best[2] + d0)), alpha_d=float(alpha_d)
    )


@dataclass(frozen=True, kw_only=True)
class RepeatedData:
    """How much repeated tokens and surplus parameters are worth.

    r_d, r_n: repetitions after which most of what repeating can give is had.

    Source: Muennighoff et al. 2023, arXiv:2305.16264, section 3.1; their fits are the defaults.
    """

    r_d: float = 15.387756
    r_n: float = 5.309743

    def tokens(self, d: Any, unique: Any) -> Any:
        """Fresh tokens worth as much as D tokens drawn from `unique` ones; D itself up to one epoch."""
        return _effective(d, np.minimum(unique, d), self.r_d)

    def parameters(self, n: Any, unique: Any, law: Law) -> Any:
        """Parameters worth as much as N where data are so few that, by the law of fresh data, fewer would do."""
        # the size for which `unique` tokens are optimal: alpha A / N^alpha = beta B / D^beta
        log_n = (np.log(law.alpha * law.A) - np.log(law.beta * law.B) + law.beta * np.log(unique)) / law.alpha
        return _effective(n, np.minimum(np.exp(log_n), n), self.r_n)

    def loss(self, n: Any, d: Any, unique: Any, law: Law) -> Any:
        """Loss (nats) of N parameters after D tokens of which `unique` are different."""
        return law.loss(self.parameters(n, unique, law), self.tokens(d, unique))


def repeated_data(n: np.ndarray, d: np.ndarray, unique: np.ndarray, loss: np.ndarray, law: Law) -> RepeatedData:
    """r_d and r_n of least squares on log loss, given the law of fresh data.

    Raises:
        ValueError: no run repeats data.
    """
    if not (d > unique * 1.001).any():
        raise ValueError("no run repeats data (n_tokens above unique_tokens): nothing shows what repeating is worth")

    def residual(theta: np.ndarray) -> np.ndarray:
        return np.log(RepeatedData(r_d=np.exp(theta[0]), r_n=np.exp(theta[1])).loss(n, d, unique, law)) - np.log(loss)

    best = _best(residual, [np.log([r_d, r_n]) for r_d in (3.0, 15.0, 60.0) for r_n in (2.0, 10.0)])
    return RepeatedData(r_d=float(np.exp(best[0])), r_n=float(np.exp(best[1])))


def _effective(total: Any, unique: Any, r: float) -> Any:
    repetitions = np.asarray(total, np.float64) / unique - 1
    return unique * (1 + r * -np.expm1(-repetitions / r))


def _best(residual: Callable[[np.ndarray], np.ndarray], starts: list[np.ndarray]) -> np.ndarray:
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "max_nfev": 2000}
    with np.errstate(over="ignore", invalid="ignore"):
        found = [minimize_squares(residual, start, x_scale="jac", **tight) for start in starts]
    return min(found, key=lambda result: result.cost).x
