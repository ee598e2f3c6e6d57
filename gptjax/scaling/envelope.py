"""Training-curve envelope (approach 1): for each compute, the size whose loss is lowest among all that were run."""

from typing import NamedTuple

import numpy as np

from gptjax.scaling.runs import Runs

_POINTS = 1500  # values of C, evenly spread in ln C


class Envelope(NamedTuple):
    """Lower envelope of loss over compute.

    c, loss, n: f64[P], compute, loss and best size.  exponent: of N*(C), None with a single size.
    """

    c: np.ndarray
    loss: np.ndarray
    n: np.ndarray
    exponent: float | None


def envelope(runs: Runs) -> Envelope | None:
    """The envelope of the curves of every size that has two horizons at least; None if fewer than two have.

    Curves are interpolated in ln C and never extended, so the envelope ends where the last curve does.

    Args:
        runs: one row for each evaluated horizon.

    Source: Hoffmann et al. 2022, arXiv:2203.15556, section 3.1.
    """
    curves = []
    for n in np.unique(runs.n):
        mine = runs.take(runs.n == n)
        log_c, which = np.unique(np.log(mine.c), return_inverse=True)
        if len(log_c) > 1:
            curves.append((n, log_c, np.bincount(which, mine.loss) / np.bincount(which)))
    if len(curves) < 2:
        return None
    grid = np.linspace(min(curve[1][0] for curve in curves), max(curve[1][-1] for curve in curves), _POINTS)
    losses = np.stack([np.interp(grid, log_c, loss, left=np.inf, right=np.inf) for _, log_c, loss in curves])
    covered = np.isfinite(losses).sum(axis=0) >= 2  # a single curve is no competition
    if not covered.any():
        return None
    grid, losses = grid[covered], losses[:, covered]
    best = losses.argmin(axis=0)
    sizes = np.array([curve[0] for curve in curves])[best]
    exponent = float(np.polyfit(grid, np.log(sizes), 1)[0]) if len(np.unique(sizes)) > 1 else None
    return Envelope(np.exp(grid), losses[best, np.arange(len(grid))], sizes, exponent)
