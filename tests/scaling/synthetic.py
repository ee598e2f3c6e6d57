"""Runs of a known law on isoFLOP grids."""

import numpy as np

from gptjax.scaling.law import Law
from gptjax.scaling.runs import Runs

LAW = Law(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)  # the published one, rounded


def runs_of(n, d, loss, c=None, trunk=None):
    """Runs of arrays; c defaults to 6 N D, trunk to one for each run."""
    n, d, loss = (np.asarray(x, np.float64) for x in (n, d, loss))
    c = 6 * n * d if c is None else np.asarray(c, np.float64)
    trunk = np.arange(len(n)) if trunk is None else np.asarray(trunk)
    names = [f"run {i}" for i in range(len(n))]
    return Runs(n=n, d=d, c=c, loss=loss, trunk=trunk, names=names, rows=[{} for _ in n])


def grid(law=LAW, *, budgets=6, sizes=7, spread=4.0, noise=0.0, seed=0, first=1e18, factor=4.0, shift=1.0):
    """Runs at `budgets` budgets, each with `sizes` sizes within a factor `spread` of `shift` times the optimum."""
    rng = np.random.default_rng(seed)
    c = np.repeat(first * factor ** np.arange(budgets), sizes)
    n = shift * law.optimum(c)[0] * np.tile(np.geomspace(1 / spread, spread, sizes), budgets)
    d = c / (6 * n)
    return runs_of(n, d, law.loss(n, d) * np.exp(noise * rng.normal(size=len(n))))


def scattered(law=LAW, m=245, *, noise=0.0, seed=0):
    """`m` runs at random sizes and token counts."""
    rng = np.random.default_rng(seed)
    n, d = 10 ** rng.uniform(7.6, 10.2, m), 10 ** rng.uniform(9.5, 11.7, m)
    return runs_of(n, d, law.loss(n, d) * np.exp(noise * rng.normal(size=m)))
