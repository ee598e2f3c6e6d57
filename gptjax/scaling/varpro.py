"""Least squares of the parametric law by variable projection: many weightings of the same runs at once.

For given exponents the law is linear in E, A and B, so only the two exponents are searched: a grid finds the basin, a
damped Gauss-Newton iteration on the projected residual ends it. The five-dimensional problem has a condition number of
about 1e11, the two-dimensional one of about 10.

Arrays are f64; R counts weightings (bootstrap draws), M runs, G grid points; they are no dimensions of a model, so
names here carry no suffixes.
"""

import itertools
from typing import NamedTuple

import numpy as np

from gptjax.scaling.law import Law, Solution

EXPONENT_BOUNDS = (0.01, 3.0)
_SUBSETS = [subset for size in (3, 2, 1) for subset in itertools.combinations(range(3), size)]
_CHUNK = 200_000  # numbers in an array of one step: about what a core's cache holds


def least_squares(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, weights: np.ndarray | None = None, *, starts: int = 4500
) -> Solution:
    """The law of least weighted squares on loss, with E, A and B not negative.

    Args:
        n: f64[M], parameters.
        d: f64[M], tokens.
        loss: f64[M], or f64[R, M] for R fits of as many sets of losses (nats).
        weights: f64[R, M], not negative, one row for each fit; None: weights 1.
        starts: pairs of exponents screened, evenly spread in their logarithms.

    Source: Golub and Pereyra 1973, doi:10.1137/0710036; Kaufman 1975, doi:10.1007/BF01932995 (the Jacobian).
    """
    loss = np.atleast_2d(loss)
    weights = np.ones_like(loss) if weights is None else np.atleast_2d(weights)
    loss = np.broadcast_to(loss, weights.shape)
    log_n, n0 = _centred(n)
    log_d, d0 = _centred(d)
    grid = _grid(starts)
    rows = max(1, _CHUNK // max(len(grid), len(n)))
    pieces = [
        _solve(log_n, log_d, loss[i : i + rows], weights[i : i + rows], grid) for i in range(0, len(weights), rows)
    ]  # fmt: skip
    exponents, linear, objective, condition, gradient = (np.concatenate(part) for part in zip(*pieces, strict=True))
    law = Law(
        E=linear[:, 0],
        A=linear[:, 1] * np.exp(exponents[:, 0] * n0),
        alpha=exponents[:, 0],
        B=linear[:, 2] * np.exp(exponents[:, 1] * d0),
        beta=exponents[:, 1],
    )
    return Solution(law, objective, condition, gradient, screened=len(grid))


def _centred(values: np.ndarray) -> tuple[np.ndarray, float]:
    logs = np.log(values)
    middle = float(logs.mean())
    return logs - middle, middle


def _grid(starts: int) -> np.ndarray:
    """[G, 2] pairs of exponents."""
    side = max(3, round(starts**0.5))
    alphas = np.geomspace(0.03, 2.5, side)
    betas = np.geomspace(0.03, 2.5, max(3, starts // side))
    return np.stack(np.meshgrid(alphas, betas, indexing="ij"), axis=-1).reshape(-1, 2)


def _solve(
    log_n: np.ndarray, log_d: np.ndarray, loss: np.ndarray, weights: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Exponents, (E, A, B), objective, condition, gradient; a coefficient below 0 is set to 0 and the rest redone."""
    exponents, active = _screened(log_n, log_d, loss, weights, grid)
    exponents, state = _polished(log_n, log_d, loss, weights, exponents, active)
    while (state.linear < 0).any():
        active &= state.linear >= 0
        exponents, state = _polished(log_n, log_d, loss, weights, exponents, active)
    scale = np.maximum((weights * loss**2).sum(axis=1), 1e-300)
    gradient = np.linalg.norm(state.slope, axis=1) / scale
    return exponents, state.linear, state.objective, np.linalg.cond(state.curvature), gradient


def _polished(log_n, log_d, loss, weights, start, active) -> tuple[np.ndarray, "_Projection"]:
    """Damped Gauss-Newton from `start`, each weighting until its exponents stand still."""
    exponents, damping = start.copy(), np.full(len(start), 1e-3)
    state = _projected(log_n, log_d, loss, weights, exponents, active)
    running = np.arange(len(exponents))
    for _ in range(100):
        now = _Projection(*(part[running] for part in state))
        proposal = np.clip(exponents[running] + np.clip(_step(now, damping[running]), -0.5, 0.5), *EXPONENT_BOUNDS)
        tried = _projected(log_n, log_d, loss[running], weights[running], proposal, active[running])
        better = tried.objective <= now.objective
        moved = np.abs(proposal - exponents[running]).max(axis=1)
        took = running[better]
        exponents[took] = proposal[better]
        for part, new in zip(state, tried, strict=True):
            part[took] = new[better]
        damping[running] = np.where(better, damping[running] * 0.1, damping[running] * 10)
        running = running[((moved > 1e-13) | ~better) & (damping[running] < 1e6)]
        if not len(running):
            break
    return exponents, state


class _Projection(NamedTuple):
    """linear [R, 3], objective [R], and half of the slope [R, 2] and curvature [R, 2, 2] over the exponents."""

    linear: np.ndarray
    objective: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray


def _projected(log_n, log_d, loss, weights, exponents, active) -> _Projection:
    """Linear least squares at given exponents by modified Gram-Schmidt, orthogonalised twice; columns off are zero."""
    root = np.sqrt(weights)
    x = root * np.exp(-exponents[:, :1] * log_n)
    y = root * np.exp(-exponents[:, 1:] * log_d)
    columns = [column * on[:, None] for column, on in zip((root, x, y), active.T, strict=True)]
    basis: list[np.ndarray] = []
    upper = np.zeros((len(exponents), 3, 3))
    for j, column in enumerate(columns):
        for _ in range(2):
            for i, unit in enumerate(basis):
                inner = np.einsum("rm,rm->r", unit, column)
                upper[:, i, j] += inner
                column = column - inner[:, None] * unit
        length = np.sqrt(np.einsum("rm,rm->r", column, column))
        degenerate = length < 1e-14
        upper[:, j, j] = np.where(degenerate, 1.0, length)
        basis.append(np.where(degenerate[:, None], 0.0, column / upper[:, j, j, None]))

    def rest(vector: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        parts = [np.zeros(len(vector))] * 3
        for _ in range(2):
            for i, unit in enumerate(basis):
                inner = np.einsum("rm,rm->r", unit, vector)
                parts[i] = parts[i] + inner
                vector = vector - inner[:, None] * unit
        return vector, parts

    residual, parts = rest(root * loss)
    linear = np.zeros((len(exponents), 3))
    for j in (2, 1, 0):
        linear[:, j] = (parts[j] - np.einsum("ri,ri->r", upper[:, j, j + 1 :], linear[:, j + 1 :])) / upper[:, j, j]
    linear *= active
    slopes = [rest(linear[:, 1:2] * log_n * x)[0], rest(linear[:, 2:] * log_d * y)[0]]
    slope = np.stack([np.einsum("rm,rm->r", part, residual) for part in slopes], axis=1)
    curvature = np.stack([np.stack([np.einsum("rm,rm->r", a, b) for a in slopes], 1) for b in slopes], 1)
    return _Projection(linear, np.einsum("rm,rm->r", residual, residual), slope, curvature)


def _step(state: _Projection, damping: np.ndarray) -> np.ndarray:
    (a, b), (_, c) = state.curvature.transpose(1, 2, 0)
    lift = damping * (a + c) + 1e-300
    a, c = a + lift, c + lift
    determinant = np.maximum(a * c - b * b, 1e-300)
    g, h = state.slope.T
    return -np.stack([(c * g - b * h) / determinant, (a * h - b * g) / determinant], axis=1)


def _screened(log_n, log_d, loss, weights, grid) -> tuple[np.ndarray, np.ndarray]:
    """The best grid point of each weighting, and which of E, A, B are positive there."""
    x, y = np.exp(-grid[:, :1] * log_n), np.exp(-grid[:, 1:] * log_d)
    columns = (np.ones_like(x), x, y)
    moments = {(i, j): weights @ (columns[i] * columns[j]).T for i in range(3) for j in range(i, 3)}
    moments |= {(i, 3): (weights * loss) @ columns[i].T for i in range(3)}
    moments[3, 3] = (weights * loss**2).sum(axis=1, keepdims=True)
    best = np.full(weights.shape[0], np.inf)
    point, active = np.zeros(len(best), int), np.ones((len(best), 3), bool)
    for subset in _SUBSETS:
        cost, linear = _normal_equations(moments, subset)
        feasible = np.all(np.stack(linear) >= 0, axis=0)
        cost = np.where(feasible & np.isfinite(cost), cost, np.inf)
        found = cost.argmin(axis=1)
        value = cost[np.arange(len(best)), found]
        better = value < best
        best, point = np.where(better, value, best), np.where(better, found, point)
        active[better] = np.isin(np.arange(3), subset)
    return grid[point], active


def _normal_equations(moments, subset) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cost [R, G] and coefficients of the least squares on a subset of the columns, by elimination."""
    size = len(subset)
    matrix = [[moments[min(i, j), max(i, j)] for j in subset] + [moments[i, 3]] for i in subset]
    with np.errstate(divide="ignore", invalid="ignore"):
        for k in range(size):
            for i in range(k + 1, size):
                factor = matrix[i][k] / matrix[k][k]
                matrix[i] = [low - factor * high for low, high in zip(matrix[i], matrix[k], strict=True)]
        linear: list[np.ndarray] = [np.zeros(())] * size
        for k in range(size - 1, -1, -1):
            known = sum((matrix[k][j] * linear[j] for j in range(k + 1, size)), np.zeros(()))
            linear[k] = (matrix[k][size] - known) / matrix[k][k]
    fitted = sum((moments[i, 3] * value for i, value in zip(subset, linear, strict=True)), np.zeros(()))
    return moments[3, 3] - fitted, linear
