"""A fitted law with everything that a reader needs to judge it: search, intervals, residuals, warnings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptjax.choices import check_choices, check_numbers
from gptjax.scaling.bootstrap import Method, Resampling, bootstrap, inflation, interval, log_residuals
from gptjax.scaling.law import PARAMETERS, Law
from gptjax.scaling.robust import robust_fit
from gptjax.scaling.runs import Runs
from gptjax.scaling.varpro import EXPONENT_BOUNDS, least_squares


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to fit the parametric law.

    method: varpro (least squares on loss by variable projection), huber or lad (log loss, log-sum-exp).
    delta: of Huber's loss (log nats).  draws: bootstrap refits.  resampling: see gptjax.scaling.bootstrap.
    seed: of the bootstrap.
    """

    method: Method = "varpro"
    delta: float = 1e-3
    draws: int = 1000
    resampling: Resampling = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        if self.draws < 40:
            raise ValueError(f"draws must be at least 40 to have a 95 % interval, got {self.draws}")
        check_numbers(self, positive=("delta",))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law, the runs it was fitted to, and laws [R] of the bootstrap.

    search: objective, starts screened, polished and converged, condition number, gradient norm.
    warnings: sentences on what the runs do not support.
    """

    config: FitConfig
    runs: Runs
    law: Law
    draws: Law
    search: dict[str, Any]
    warnings: tuple[str, ...]

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Of E, A, alpha, B, beta or size_exponent."""
        return interval(getattr(self.draws, name), level)

    def optimum_draws(self, flops: float) -> tuple[np.ndarray, np.ndarray]:
        """(N*, D*) of every draw, f64[R]."""
        return self.draws.optimum(flops, self.runs.flops_per_parameter_token)

    @property
    def rms_log_residual(self) -> float:
        """Root mean square of log residuals, of M - 5 degrees of freedom."""
        return float(np.sqrt(np.mean(log_residuals(self.runs, self.law) ** 2)) * inflation(self.runs))


def fit(runs: Runs, config: FitConfig | None = None, *, done: Callable[[int], None] = lambda n: None) -> Fit:
    """Fit the parametric law and find out how far to trust it.

    Args:
        runs: finished runs.
        config: how.
        done: called with the number of bootstrap draws made so far.

    Raises:
        ValueError: the runs cannot determine five parameters.
    """
    config = config or FitConfig()
    check(runs)
    law, search = point_fit(runs, config)
    draws = bootstrap(
        runs, law, config.method, draws=config.draws, seed=config.seed, delta=config.delta,
        resampling=config.resampling, done=done,
    )  # fmt: skip
    return Fit(config=config, runs=runs, law=law, draws=draws, search=search, warnings=_warnings(runs, law, draws))


def check(runs: Runs) -> None:
    """Raise ValueError, in words, if the runs cannot determine the law."""
    if len(runs) <= len(PARAMETERS):
        raise ValueError(f"{len(runs)} runs cannot determine {len(PARAMETERS)} parameters: at least 6 are needed")
    for values, what in ((runs.n, "model sizes"), (runs.d, "token counts")):
        distinct = len(np.unique(np.round(np.log(values), 2)))
        if distinct < 3:
            raise ValueError(
                f"the runs have {distinct} different {what}: an exponent and two constants need at least 3; add runs"
            )
    if runs.budget.max() == 0:
        raise ValueError(
            f"all {len(runs)} runs have one budget ({runs.c.mean():.2g} FLOPs): along one isoFLOP curve the terms of N "
            "and D cannot be told apart; add runs of another budget"
        )


def point_fit(runs: Runs, config: FitConfig) -> tuple[Law, dict[str, Any]]:
    """The law of all runs, and how the search went."""
    if config.method == "varpro":
        found = least_squares(runs.n, runs.d, runs.loss)
    else:
        found = robust_fit(runs.n, runs.d, runs.loss, config.method, delta=config.delta)
    search = {
        "objective": float(found.objective[0]),
        "starts_screened": found.screened,
        "starts_polished": found.polished,
        "starts_converged": found.converged,
        "condition": float(found.condition[0]),
        "gradient": float(found.gradient[0]),
    }
    return Law.of(found.law.array[0]), search


def residual_trends(runs: Runs, law: Law) -> dict[str, tuple[float, float]]:
    """Slope of the log residuals over ln N, ln D and ln C, and its t value: (slope, t) by name."""
    residual = log_residuals(runs, law)
    found = {}
    for name, values in (("N", runs.n), ("D", runs.d), ("C", runs.c)):
        x = np.log(values) - np.log(values).mean()
        slope = float(x @ residual / max(x @ x, 1e-300))
        rest = residual - residual.mean() - slope * x
        error = np.sqrt(rest @ rest / max(1, len(x) - 2) / max(x @ x, 1e-300))
        found[name] = (slope, float(slope / max(error, 1e-300)))
    return found


def _warnings(runs: Runs, law: Law, draws: Law) -> tuple[str, ...]:
    found = []
    for name, of in (("alpha", "N"), ("beta", "D")):
        low, high = interval(getattr(draws, name))
        at_edge = low <= 1.5 * EXPONENT_BOUNDS[0] or high >= 0.99 * EXPONENT_BOUNDS[1]
        if at_edge or high > 3 * low:
            found.append(f"{name} is not identified: these runs allow {low:.2g} to {high:.2g}; spread {of} wider")
    if interval(draws.E)[0] <= 0.02 * law.E:
        found.append("E is not identified: the runs are also compatible with a loss that falls to zero")
    found += _outside(runs, law)
    for name, (slope, t) in residual_trends(runs, law).items():
        if abs(t) > 3 and abs(slope) > 1e-6:
            found.append(f"the residuals drift with {name} ({slope:+.2%} per e-fold, t {t:.1f}): the law does not fit")
    steps = runs.values("steps")
    if steps is not None and (steps < 1000).any():
        short = int((steps < 1000).sum())
        found.append(f"{short} runs have fewer than 1,000 steps, which bends isoFLOP curves to the left")
    return tuple(found)


def _outside(runs: Runs, law: Law) -> list[str]:
    """Budgets whose optimum lies outside the sizes that were run."""
    found = []
    for mine in runs.budgets:
        if len(np.unique(mine.n)) < 3:
            continue
        c = float(np.exp(np.log(mine.c).mean()))
        n, _ = law.optimum(c, mine.flops_per_parameter_token)
        if not mine.n.min() < n < mine.n.max():
            side = "above" if n >= mine.n.max() else "below"
            found.append(f"at {c:.2g} FLOPs the optimum {n:.3g} lies {side} the sizes that were run: extend the grid")
    return found
