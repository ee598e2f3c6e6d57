"""How well scores predict rankings: pair accuracy, log-loss, Brier score and calibration."""

from typing import Any

import numpy as np


def ordered_pairs(ranks_BC: np.ndarray, include_BC: np.ndarray | None = None) -> np.ndarray:
    """i64[pairs, 3]: (prompt, better candidate, worse candidate) of all pairs whose ranks differ.

    Args:
        ranks_BC: i32[B, C], 1 = best, 0 = no candidate.
        include_BC: bool[B, C], candidates to look at (None: all).
    """
    present_BC = ranks_BC > 0 if include_BC is None else (ranks_BC > 0) & include_BC
    both_BCC = present_BC[:, :, None] & present_BC[:, None, :]
    return np.argwhere(both_BCC & (ranks_BC[:, :, None] < ranks_BC[:, None, :]))


def pair_accuracy(scores_BC: np.ndarray, pairs: np.ndarray) -> float:
    """Share of pairs whose better candidate has the higher score; equal scores count half; NaN without pairs."""
    if not len(pairs):
        return float("nan")
    difference = scores_BC[pairs[:, 0], pairs[:, 1]] - scores_BC[pairs[:, 0], pairs[:, 2]]
    return float(np.mean(np.where(difference > 0, 1.0, np.where(difference == 0, 0.5, 0.0))))


def ranking_report(scores_BC: np.ndarray, ranks_BC: np.ndarray, *, bins: int = 10) -> dict[str, Any]:
    """accuracy, nll (nats), brier, ece and a reliability table of sigmoid(score difference) over all ordered pairs.

    A pair is looked at once, from the side that the scores favour: the confidence is sigmoid(|difference|), in [.5, 1].

    Args:
        scores_BC: float[B, C].
        ranks_BC: i32[B, C], 1 = best, 0 = no candidate.
        bins: equal bins of confidence between .5 and 1.
    """
    pairs = ordered_pairs(ranks_BC)
    difference = scores_BC[pairs[:, 0], pairs[:, 1]] - scores_BC[pairs[:, 0], pairs[:, 2]]
    p = 1.0 / (1.0 + np.exp(-np.clip(difference, -500, 500)))
    confidence = np.maximum(p, 1.0 - p)
    right = np.where(difference > 0, 1.0, np.where(difference == 0, 0.5, 0.0))
    which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    table = [
        {
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
            "count": int(inside.sum()),
        }
        for inside in (which == number for number in range(bins))
        if inside.any()
    ]
    return {
        "accuracy": float(right.mean()),
        "nll": float(np.mean(np.logaddexp(0.0, -difference))),
        "brier": float(np.mean((1.0 - p) ** 2)),
        "ece": float(sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in table) / len(pairs)),
        "reliability": table,
        "pairs": len(pairs),
    }


def length_only_accuracy(
    train_lengths_BC: np.ndarray, train_ranks_BC: np.ndarray, lengths_BC: np.ndarray, pairs: np.ndarray
) -> float:
    """Accuracy on `pairs` of the best score that sees nothing but the length: a quadratic fitted on training pairs.

    The fit is a logistic regression of the outcome on the differences of length and of length squared (Newton steps).
    """
    scale = max(float(train_lengths_BC.max()), 1.0)

    def features(lengths: np.ndarray) -> np.ndarray:
        x = lengths / scale
        return np.stack([x, x * x], axis=-1)

    train = ordered_pairs(train_ranks_BC)
    x_BCf = features(train_lengths_BC)
    d = x_BCf[train[:, 0], train[:, 1]] - x_BCf[train[:, 0], train[:, 2]]
    weights = np.zeros(2)
    for _ in range(20):
        p = 1.0 / (1.0 + np.exp(-d @ weights))
        hessian = (d * (p * (1 - p))[:, None]).T @ d + 1e-6 * np.eye(2)
        weights += np.linalg.solve(hessian, d.T @ (1.0 - p))
    return pair_accuracy(features(lengths_BC) @ weights, pairs)
