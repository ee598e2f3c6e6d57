"""One metric out of a log: picked, smoothed, put in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Rows: TypeAlias = Sequence[Mapping[str, Any]]  # of `read_metrics`


def series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric, where it was logged and finite.

    Args:
        rows: rows of `read_metrics`.
        key: the metric's name.

    Returns:
        (steps, values), f64[n] each.
    """
    found = [(row["step"], number(row.get(key))) for row in rows]
    points = np.array([(step, value) for step, value in found if value is not None], np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def number(value: Any) -> float | None:
    """The value as a float when it is a finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over about a twentieth of the curve.

    At the start the window shrinks on both sides, so that a steep first descent is followed; at the end only the
    right side does, so that the curve ends in a mean.

    Args:
        values: f64[n].

    Returns:
        f64[n].
    """
    i = np.arange(len(values))
    half = len(values) // 40
    base = values[:1]  # taken off so that a constant stays exactly constant
    sums = np.concatenate([[0.0], np.cumsum(values - base)])
    begin, end = np.maximum(i - half, 0), np.minimum(i + np.minimum(half, i) + 1, len(values))
    return base + (sums[end] - sums[begin]) / (end - begin)


def course(name: str, steps: np.ndarray, values: np.ndarray, unit: str) -> str:
    """What a series does, in words: from the mean of its first twentieth to that of its last.

    Args:
        name: what is measured, the subject of the sentence.
        steps: f64[n], update steps; n is at least 1.
        values: f64[n].
        unit: unit of the values, "" for a fraction.

    Returns:
        "The training loss fell from 5.41 to 2.31 nats per token by step 500".
    """
    n = max(1, len(values) // 20)
    first, last = values[:n].mean(), values[-n:].mean()
    if len(values) == 1:
        return f"{name} is {last:.3g} {unit}".rstrip() + f" at step {steps[-1]:,.0f}, the only one logged"
    change = f"{'fell' if last < first else 'rose'} from {first:.3g} to {last:.3g}"
    if f"{first:.3g}" == f"{last:.3g}":
        change = f"stayed at {last:.3g}"
    return f"{name} {change} {unit}".rstrip() + f" by step {steps[-1]:,.0f}"
