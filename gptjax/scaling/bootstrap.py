"""Uncertainty of a fitted law: refits on resampled runs, or on losses whose residuals are flipped trunk by trunk."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from gptjax.scaling.law import PARAMETERS, Law
from gptjax.scaling.robust import Penalty, robust_refits
from gptjax.scaling.runs import Runs
from gptjax.scaling.varpro import least_squares

Method = Literal["varpro", "huber", "lad"]
Resampling = Literal["auto", "trunks", "residuals"]
FEW_TRUNKS = 20  # below it, resampling trunks leaves draws in which hardly any sizes differ
_WEBB = np.sqrt(np.array([0.5, 1.0, 1.5]))  # with both signs: mean 0, variance 1, third moment 0
_STARTS = 100  # exponents screened for each draw


def bootstrap(
    runs: Runs,
    law: Law,
    method: Method,
    *,
    draws: int,
    seed: int,
    delta: float = 1e-3,
    resampling: Resampling = "auto",
    done: Callable[[int], None] = lambda n: None,
) -> Law:
    """The laws [draws] of as many refits.

    Args:
        runs: what `law` was fitted to.
        law: the fit.
        method: how to refit.
        draws: refits.
        seed: of the resampling.
        delta: of Huber's loss.
        resampling: trunks: draw as many trunks as there are, with replacement, all runs of one together; residuals:
            keep the runs and multiply the residuals of each trunk by a random weight (wild bootstrap), which is what
            few trunks allow; auto: trunks from FEW_TRUNKS on.
        done: called with the number of draws made so far.

    Source: Efron and Tibshirani 1993, chapters 6 and 9; Webb 2023, doi:10.1111/caje.12661 (six-point weights).
    """
    rng = np.random.default_rng(seed)
    _, trunk = np.unique(runs.trunk, return_inverse=True)
    n_trunks = int(trunk.max()) + 1
    by_trunk = resampling == "trunks" or (resampling == "auto" and n_trunks >= FEW_TRUNKS)
    made: list[np.ndarray] = []
    for start in range(0, draws, 200):
        count = min(200, draws - start)
        if by_trunk:
            counts = rng.multinomial(n_trunks, np.full(n_trunks, 1 / n_trunks), size=count)
            weights, loss = counts[:, trunk].astype(np.float64), runs.loss
        else:
            signs = rng.choice(np.concatenate([-_WEBB, _WEBB]), size=(count, n_trunks))
            weights = np.ones((count, len(runs)))
            loss = _perturbed(runs, law, signs[:, trunk])
        made.append(_refitted(runs, law, method, weights, loss, delta).array)
        done(start + count)
    return Law.of(np.concatenate(made))


def inflation(runs: Runs) -> float:
    """By how much residuals of a fit of five parameters understate the noise: (M / (M - 5))^.5."""
    return (len(runs) / max(1, len(runs) - len(PARAMETERS))) ** 0.5


def log_residuals(runs: Runs, law: Law) -> np.ndarray:
    """f64[M], log of observed over fitted loss."""
    return np.log(runs.loss) - np.log(law.loss(runs.n, runs.d))


def predictive(runs: Runs, law: Law, draws: Law, n: Any, d: Any, *, seed: int) -> np.ndarray:
    """f64[R, ...], losses that a new run at (n, d) might show: a drawn law times a drawn residual."""
    rng = np.random.default_rng(seed)
    noise = rng.choice(inflation(runs) * log_residuals(runs, law), size=len(draws.E))
    shape = (-1,) + (1,) * np.ndim(n)
    drawn = Law(**{name: getattr(draws, name).reshape(shape) for name in PARAMETERS})
    return drawn.loss(np.asarray(n), np.asarray(d)) * np.exp(noise.reshape(shape))


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of finite draws."""
    tail = 50 * (1 - level)
    low, high = np.percentile(values[np.isfinite(values)], [tail, 100 - tail])
    return float(low), float(high)


def _perturbed(runs: Runs, law: Law, weights: np.ndarray) -> np.ndarray:
    fitted = law.loss(runs.n, runs.d)
    return fitted * np.exp(weights * log_residuals(runs, law) / (1 - leverage(runs, law)))


def leverage(runs: Runs, law: Law) -> np.ndarray:
    """f64[M], how far each run pulls the fit to itself: residuals are too small by one less this.

    Source: MacKinnon and White 1985, doi:10.1016/0304-4076(85)90158-7 (their HC3).
    """
    x, y = np.log(runs.n) - np.log(runs.n).mean(), np.log(runs.d) - np.log(runs.d).mean()
    from_n, from_d = np.exp(-law.alpha * x), np.exp(-law.beta * y)
    columns = np.stack([np.ones_like(x), from_n, x * from_n, from_d, y * from_d], axis=1)
    columns = columns / law.loss(runs.n, runs.d)[:, None]
    basis = np.linalg.svd(columns, full_matrices=False)[0]
    return np.minimum((basis**2).sum(axis=1), 0.9)


def _refitted(runs: Runs, law: Law, method: Method, weights: np.ndarray, loss: np.ndarray, delta: float) -> Law:
    if method == "varpro":
        return least_squares(runs.n, runs.d, loss, weights, starts=_STARTS).law
    penalty: Penalty = method
    return robust_refits(runs.n, runs.d, loss, weights, law, penalty, delta=delta)
