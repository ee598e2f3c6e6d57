"""Extrapolation tested on runs that the fit has not seen."""

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gptjax.scaling.bootstrap import interval, predictive
from gptjax.scaling.fit import Fit, FitConfig, fit
from gptjax.scaling.runs import Runs


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One held-out budget: its run of lowest loss, predicted from smaller budgets only.

    name: of the run.  c, n, d, loss: as it was.  compute_ratio: c over the largest budget fitted.
    predicted, error: loss (nats), and predicted over observed less 1.  interval: 95 %, for one run.  inside: loss lies
    in it.  straight_line, straight_error: the line through the last two fitted minima (ln L over ln C), None with a
    single minimum.
    """

    name: str
    c: float
    n: float
    d: float
    loss: float
    compute_ratio: float
    predicted: float
    error: float
    interval: tuple[float, float]
    inside: bool
    straight_line: float | None
    straight_error: float | None

    @property
    def allowed_error(self) -> float:
        """1 % at four times the compute, 2 % at ten, in between and beyond along the logarithm."""
        return max(0.01, 0.01 + 0.01 * math.log(self.compute_ratio / 4) / math.log(10 / 4))

    @property
    def passed(self) -> bool:
        """Whether the error is within the gate."""
        return abs(self.error) <= self.allowed_error

    def asdict(self) -> dict[str, Any]:
        """Every figure, the gate included."""
        return dataclasses.asdict(self) | {"allowed_error": self.allowed_error, "passed": self.passed}


def straight_line(runs: Runs, c: float) -> float | None:
    """Loss at C on the line through the lowest losses of the two largest budgets, in ln L over ln C."""
    last = runs.budgets[-2:]
    if len(last) < 2:
        return None
    (x1, y1), (x2, y2) = ((math.log(part.c[part.loss.argmin()]), math.log(part.loss.min())) for part in last)
    return math.exp(y2 + (y2 - y1) / (x2 - x1) * (math.log(c) - x2))


def predict(fitted: Fit, n: float, d: float, c: float) -> dict[str, Any]:
    """What a fit says of one run at (N, D) of compute C, before it is known: loss, 95 % interval, straight line."""
    draws = predictive(fitted.runs, fitted.law, fitted.draws, n, d, seed=fitted.config.seed)
    return {
        "n_params": float(n),
        "n_tokens": float(d),
        "flops": float(c),
        "loss": float(fitted.law.loss(n, d)),
        "interval_95": list(interval(draws)),
        "straight_line": straight_line(fitted.runs, c),
        "compute_ratio": float(c / fitted.runs.c.max()),
    }


def compared(said: dict[str, Any], seen: Runs) -> Prediction:
    """What `predict` said beside the run of lowest loss among `seen`, which the fit did not know."""
    best = int(seen.loss.argmin())
    n, d, c, loss = (float(x[best]) for x in (seen.n, seen.d, seen.c, seen.loss))
    line = said["straight_line"]
    low, high = said["interval_95"]
    return Prediction(
        name=seen.names[best],
        c=c,
        n=n,
        d=d,
        loss=loss,
        compute_ratio=said["compute_ratio"],
        predicted=said["loss"],
        error=said["loss"] / loss - 1,
        interval=(low, high),
        inside=low <= loss <= high,
        straight_line=line,
        straight_error=None if line is None else line / loss - 1,
    )


def _predicted(fitted: Fit, seen: Runs) -> Prediction:
    """The run of lowest loss among `seen`, predicted and compared."""
    best = int(seen.loss.argmin())
    return compared(predict(fitted, seen.n[best], seen.d[best], seen.c[best]), seen)


def holdout(runs: Runs, config: FitConfig, budgets: int = 1) -> list[Prediction]:
    """Fit without the largest budgets, and predict each of them.

    Args:
        runs: all runs.
        config: how to fit.
        budgets: how many are held out.

    Raises:
        ValueError: there are not enough budgets, or the rest cannot determine the law.
    """
    parts = runs.budgets
    left = len(parts) - budgets
    if not 2 <= left < len(parts):
        raise ValueError(f"{budgets} budgets held out of {len(parts)}: two at least must be left to fit")
    fitted = fit(runs.take(runs.budget < left), config)
    return [_predicted(fitted, part) for part in parts[left:]]


def rolling_origin(runs: Runs, config: FitConfig) -> list[Prediction]:
    """For each budget from the third on: fit on all smaller ones, predict it. Fits that are impossible are left out."""
    found = []
    for last in range(2, len(runs.budgets)):
        with suppress(ValueError):
            found += holdout(runs.take(runs.budget <= last), config)
    return found
