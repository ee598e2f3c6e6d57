"""IsoFLOP profiles: the best size of each budget by three methods, and how it grows with compute."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from gptjax.scaling.bootstrap import interval
from gptjax.scaling.law import Law
from gptjax.scaling.runs import Runs

_DRAWS = 1000  # noisy copies of each profile
NEAREST = 5  # sizes round the lowest loss that the parabola is fitted to


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """Where one budget's losses are lowest.

    c: achieved budget (FLOPs, geometric mean).  sizes, losses: the profile, seeds averaged.  parabola: coefficients of
    loss over ln N, highest first.  n, loss: its vertex; None where there is none to trust.  n_akima, n_surface: by
    Akima's interpolation and by the parametric law.  spread: largest over smallest of the three.  r2: of the parabola.
    interval: 95 %, of n, from noise in the losses.  flags: what is wrong with the profile; a minimum with any of them
    enters no power law.
    """

    c: float
    sizes: np.ndarray
    losses: np.ndarray
    parabola: np.ndarray | None
    n: float | None
    loss: float | None
    n_akima: float | None
    n_surface: float
    spread: float | None
    r2: float | None
    interval: tuple[float, float] | None
    flags: tuple[str, ...]

    def asdict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        names = ("c", "n", "loss", "n_akima", "n_surface", "spread", "r2")
        lists = {"sizes": self.sizes.tolist(), "losses": self.losses.tolist(), "flags": list(self.flags)}
        return {name: getattr(self, name) for name in names} | {"n_interval": self.interval} | lists


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """y = coefficient x C^exponent through the minima.

    interval: 95 %, of the exponent.
    """

    coefficient: float
    exponent: float
    interval: tuple[float, float]

    def at(self, c: float) -> float:
        """The line at C."""
        return self.coefficient * c**self.exponent


def minima(runs: Runs, law: Law, *, noise: float, seed: int = 0) -> tuple[list[Minimum], np.ndarray]:
    """The minimum of every budget that has three sizes, and draws f64[R, budgets] of ln N*.

    Args:
        runs: all budgets.
        law: the parametric fit (third method).
        noise: standard deviation of ln loss, from residuals or seeds.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    found, columns = [], []
    for mine in runs.budgets:
        sizes, losses = _profile(mine)
        if len(sizes) < 3:
            continue
        copies = losses * np.exp(noise * rng.normal(size=(_DRAWS, len(losses))))
        vertices = _noisy_vertices(sizes, losses, copies)
        columns.append(vertices)
        found.append(_minimum(mine, sizes, losses, law, vertices))
    return found, np.stack(columns, axis=1) if columns else np.zeros((_DRAWS, 0))


def power_law(found: list[Minimum], log_n_draws: np.ndarray, k: float, *, tokens: bool = False) -> PowerLaw | None:
    """N*(C), or D*(C) = C / (k N*), through the minima without flags; None with fewer than two.

    Args:
        found: of `minima`.
        log_n_draws: of `minima`.
        k: FLOPs for each parameter and token.
        tokens: D* instead of N*.
    """
    good = np.array([not minimum.flags for minimum in found], bool)
    if good.sum() < 2:
        return None
    log_c = np.log([minimum.c for minimum in found])[good]
    log_n = np.log([minimum.n or 1.0 for minimum in found])[good]
    drawn = log_n_draws[:, good]
    if tokens:
        log_n, drawn = log_c - np.log(k) - log_n, log_c - np.log(k) - drawn
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    x = np.stack([np.ones_like(log_c), log_c], axis=1)
    line = np.linalg.lstsq(x, log_n, rcond=None)[0]
    lines = (np.linalg.pinv(x) @ drawn.T).T
    low, high = interval(lines[:, 1]) if len(lines) else (-np.inf, np.inf)
    return PowerLaw(coefficient=float(np.exp(line[0])), exponent=float(line[1]), interval=(low, high))


def _profile(mine: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Sizes in order with the mean loss of each (seeds)."""
    sizes, which = np.unique(mine.n, return_inverse=True)
    return sizes, np.bincount(which, mine.loss) / np.bincount(which)


def _local(sizes: np.ndarray, losses: np.ndarray) -> slice:
    """The NEAREST sizes round the lowest loss."""
    count = min(NEAREST, len(sizes))
    first = int(np.clip(int(losses.argmin()) - count // 2, 0, len(sizes) - count))
    return slice(first, first + count)


def _parabolas(x: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """[..., 3] coefficients, highest power first, of least squares on losses [..., M]."""
    return losses @ np.linalg.pinv(np.vander(x, 3)).T


def _noisy_vertices(sizes: np.ndarray, losses: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """ln N of the vertex of each noisy copy; nan where the copy curves downwards."""
    near = _local(sizes, losses)
    x = np.log(sizes[near])
    middle = x.mean()
    a, b, _ = _parabolas(x - middle, copies[:, near]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a > 0, middle - b / (2 * a), np.nan)


def _minimum(mine: Runs, sizes: np.ndarray, losses: np.ndarray, law: Law, vertices: np.ndarray) -> Minimum:
    near = _local(sizes, losses)
    x, y = np.log(sizes[near]), losses[near]
    middle = x.mean()
    a, b, c = _parabolas(x - middle, y)
    fitted = np.polyval([a, b, c], x - middle)
    r2 = 1 - float(((y - fitted) ** 2).sum() / max(((y - y.mean()) ** 2).sum(), 1e-300))
    vertex = middle - b / (2 * a) if a > 0 else None
    flags = _flags(sizes, losses, vertex)
    budget = float(np.exp(np.log(mine.c).mean()))
    n_surface = float(law.optimum(budget, mine.flops_per_parameter_token)[0])
    n_akima = _akima(sizes, losses)
    n = None if vertex is None else float(np.exp(vertex))
    estimates = [value for value in (n, n_akima, n_surface) if value is not None]
    usable = not flags and np.isfinite(vertices).mean() > 0.5
    return Minimum(
        c=budget,
        sizes=sizes,
        losses=losses,
        parabola=None if vertex is None else np.array([a, b - 2 * a * middle, c - b * middle + a * middle**2]),
        n=None if flags else n,
        loss=None if flags else float(c - b * b / (4 * a)),
        n_akima=n_akima,
        n_surface=n_surface,
        spread=max(estimates) / min(estimates) if len(estimates) > 1 and not flags else None,
        r2=r2 if len(x) > 3 else None,
        interval=tuple(float(np.exp(v)) for v in interval(vertices)) if usable else None,  # type: ignore[arg-type]
        flags=flags,
    )


def _flags(sizes: np.ndarray, losses: np.ndarray, vertex: float | None) -> tuple[str, ...]:
    flags = []
    lowest = int(losses.argmin())
    if lowest in (0, len(sizes) - 1):
        flags.append(f"the lowest loss is at the {'smallest' if lowest == 0 else 'largest'} size: minimum at grid edge")
    if vertex is None:
        flags.append("negative curvature: the losses have no minimum")
    else:
        below = int((np.log(sizes) < vertex).sum())
        if min(below, len(sizes) - below) < 1:
            flags.append("the parabola's vertex lies outside the sizes that were run")
    return tuple(flags)


def _akima(sizes: np.ndarray, losses: np.ndarray) -> float | None:
    """Where Akima's interpolation is lowest, None at an end of the grid."""
    if len(sizes) < 4:
        return None
    x = np.log(sizes)
    curve = Akima1DInterpolator(x, losses)
    roots = [root for root in np.atleast_1d(curve.derivative().roots()) if x[0] < root < x[-1]]
    candidates = [root for root in roots if curve(root) < min(losses[0], losses[-1])]
    return float(np.exp(min(candidates, key=lambda root: float(curve(root))))) if candidates else None
