"""The parametric law on the logarithm of the loss, with Huber's loss or least absolute deviations, from many starts.

log L is modelled as the log-sum-exp of a - alpha log N, b - beta log D and e. All starts are screened at once; the best
are polished together by Gauss-Newton on iteratively reweighted squares (each step lowers the objective); with absolute
deviations the corner is widened first and narrowed to nothing, and the end is the vertex through the nearest points.

Arrays are f64; R counts fits, M runs.
"""

import itertools
from typing import Literal

import numpy as np

from gptjax.scaling.law import Law, Solution

Penalty = Literal["huber", "lad"]
_CHUNK = 20_000
_POLISHED = 100  # best starts that are polished


def starts() -> np.ndarray:
    """[4500, 5] (a, b, e, alpha, beta): the grid of the published fits."""
    a = np.arange(0.0, 26.0, 5.0)
    e, exponent = np.arange(-1.0, 1.1, 0.5), np.arange(0.0, 2.1, 0.5)
    return np.array(list(itertools.product(a, a, e, exponent, exponent)))


def robust_fit(n: np.ndarray, d: np.ndarray, loss: np.ndarray, penalty: Penalty, *, delta: float) -> Solution:
    """The law of least sum of Huber or absolute deviations of log loss.

    Args:
        n: f64[M], parameters.
        d: f64[M], tokens.
        loss: f64[M] (nats), positive.
        penalty: huber, or lad (what a Huber likelihood with a free scale amounts to).
        delta: where Huber's loss turns from square to straight (log nats).

    Source: Hoffmann et al. 2022, arXiv:2203.15556, section 3.3 (Huber, delta .001, the grid of starts); Besiroglu et
    al. 2024, arXiv:2404.10102 (why tolerances and sums matter).
    """
    grid = starts()
    log_n, log_d, target = np.log(n), np.log(d), np.log(loss)
    width = delta if penalty == "huber" else 0.0
    weights = np.ones((1, len(n)))
    cost = np.concatenate(
        [_objective(part, log_n, log_d, target, weights, width) for part in np.array_split(grid, 20)]
    )  # fmt: skip
    best = _centred(grid[np.argsort(cost, kind="stable")[:_POLISHED]], log_n, log_d)
    x, y = log_n - log_n.mean(), log_d - log_d.mean()
    theta, objective = _descended(best, x, y, target, np.ones((len(best), len(n))), width)
    order = np.argsort(objective)
    theta, objective = theta[order], objective[order]
    if penalty == "lad":
        theta, objective = _vertices(theta, objective, x, y, target)
    winner = int(objective.argmin())
    jacobian, residual = _jacobian(theta[winner : winner + 1], x, y, target)
    slope = np.einsum("rmp,rm->p", jacobian, np.clip(residual / (width or 1.0), -1.0, 1.0))
    converged = int((objective <= objective[winner] * (1 + 1e-6) + 1e-9).sum())
    return Solution(
        law=_law(theta[winner : winner + 1], log_n, log_d),
        objective=objective[winner : winner + 1],
        condition=np.atleast_1d(np.linalg.cond(jacobian[0].T @ jacobian[0])),
        gradient=np.atleast_1d(np.linalg.norm(slope) / len(n) if width else 0.0),
        screened=len(grid),
        polished=len(best),
        converged=converged,
    )


def robust_refits(
    n: np.ndarray,
    d: np.ndarray,
    loss: np.ndarray,
    weights: np.ndarray,
    near: Law,
    penalty: Penalty,
    *,
    delta: float = 1e-3,
) -> Law:
    """The laws [R] of R weightings f64[R, M] or sets of losses f64[R, M], each reached from the law of all runs."""
    log_n, log_d, target = np.log(n), np.log(d), np.broadcast_to(np.log(loss), weights.shape)
    x, y = log_n - log_n.mean(), log_d - log_d.mean()
    start = np.array([np.log(near.A), np.log(near.B), np.log(near.E), near.alpha, near.beta]).reshape(1, 5)
    start = _centred(start, log_n, log_d)
    rows = max(1, _CHUNK // len(n))
    width = delta if penalty == "huber" else 0.0
    thetas = []
    for i in range(0, len(weights), rows):
        part = weights[i : i + rows]
        theta = np.repeat(start, len(part), 0)
        for narrow in (width,) if width else (1e-3, 1e-4, 1e-5):
            theta = _reweighted(theta, x, y, target[i : i + rows], part, narrow, 200 if width else 30)
        thetas.append(theta)
    return _law(np.concatenate(thetas), log_n, log_d)


def _centred(theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
    """(a, b, e, alpha, beta) with a and b taken at the mean log N and log D, which frees them from the exponents."""
    theta = theta.copy()
    theta[:, 0] -= theta[:, 3] * log_n.mean()
    theta[:, 1] -= theta[:, 4] * log_d.mean()
    return theta


def _law(theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> Law:
    a, b, e, alpha, beta = theta.T
    return Law(
        E=np.exp(e), A=np.exp(a + alpha * log_n.mean()), alpha=alpha, B=np.exp(b + beta * log_d.mean()), beta=beta
    )


def _terms(theta, x, y) -> tuple[np.ndarray, np.ndarray]:
    """Predicted log loss [R, M], and the share of each of the three terms [3, R, M]."""
    floor = np.broadcast_to(theta[:, 2:3], (len(theta), len(x)))
    terms = np.stack([theta[:, :1] - theta[:, 3:4] * x, theta[:, 1:2] - theta[:, 4:] * y, floor])
    top = terms.max(axis=0)
    parts = np.exp(terms - top)
    total = parts.sum(axis=0)
    return top + np.log(total), parts / total


def _penalty(residual: np.ndarray, width: float) -> np.ndarray:
    """Huber's loss over its width, so that width 0 is the absolute deviation."""
    size = np.abs(residual)
    if width == 0.0:
        return size
    return np.where(size <= width, residual**2 / (2 * width), size - width / 2)


def _objective(theta, x, y, target, weights, width) -> np.ndarray:
    return (weights * _penalty(_terms(theta, x, y)[0] - target, width)).sum(axis=1)


def _jacobian(theta, x, y, target) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of the predicted log loss [R, M, 5], and the residual [R, M]."""
    predicted, (a, b, e) = _terms(theta, x, y)
    return np.stack([a, b, e, -a * x, -b * y], axis=-1), predicted - target


def _descended(theta, x, y, target, weights, width) -> tuple[np.ndarray, np.ndarray]:
    """Lowest point reachable from each start; for absolute deviations through ever narrower Huber losses."""
    widths = [width] if width else list(10.0 ** np.arange(-2.0, -9.0, -1.0))
    for narrow in widths:
        theta = _reweighted(theta, x, y, target, weights, narrow, 200 if width else 60)
    return theta, _objective(theta, x, y, target, weights, width)


def _reweighted(theta, x, y, target, weights, width, iterations) -> np.ndarray:
    theta, target = theta.copy(), np.broadcast_to(target, weights.shape)
    damping = np.full(len(theta), 1e-3)
    cost = _objective(theta, x, y, target, weights, width)
    running = np.arange(len(theta))
    for _ in range(iterations):
        jacobian, residual = _jacobian(theta[running], x, y, target[running])
        pull = weights[running] / np.maximum(np.abs(residual), width)
        weighted = jacobian * pull[:, :, None]
        curvature = weighted.transpose(0, 2, 1) @ jacobian
        slope = np.einsum("rmp,rm->rp", weighted, residual)
        size = np.maximum(np.einsum("rpp->rp", curvature), 1e-12)
        lifted = curvature + (damping[running, None] * size)[:, :, None] * np.eye(5)
        proposal = theta[running] - np.clip(np.linalg.solve(lifted, slope[:, :, None])[:, :, 0], -2.0, 2.0)
        tried = _objective(proposal, x, y, target[running], weights[running], width)
        better = tried < cost[running]
        gained = (cost[running] - tried) / np.maximum(cost[running], 1e-300)
        took = running[better]
        theta[took], cost[took] = proposal[better], tried[better]
        damping[running] = np.where(better, np.maximum(damping[running] * 0.2, 1e-12), damping[running] * 8)
        running = running[(~better | (gained > 1e-13)) & (damping[running] < 1e7)]
        if not len(running):
            break
    return theta


def _vertices(theta, objective, x, y, target) -> tuple[np.ndarray, np.ndarray]:
    """Absolute deviations end in a vertex: solve for the law through the five nearest points where that is lower."""
    one = np.ones((1, len(x)))
    for i in range(len(theta)):
        nearest = np.argsort(np.abs(_jacobian(theta[i : i + 1], x, y, target)[1][0]))[:5]
        point = theta[i : i + 1]
        for _ in range(8):
            jacobian, residual = _jacobian(point, x[nearest], y[nearest], target[nearest])
            step = np.linalg.lstsq(jacobian[0], residual[0], rcond=1e-12)[0]
            point = point - np.clip(step, -0.1, 0.1)
        value = _objective(point, x, y, target, one, 0.0)[0]
        if value < objective[i]:
            theta[i], objective[i] = point[0], value
    return theta, objective
