"""How well scores predict rankings: pair accuracy, log-loss, Brier score and calibration."""

from collections.abc import Sequence
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
    return float(np.mean(_right(_differences(scores_BC, pairs)))) if len(pairs) else float("nan")


def ranking_report(scores_BC: np.ndarray, ranks_BC: np.ndarray, *, bins: int = 10) -> dict[str, Any]:
    """accuracy, nll (nats), brier, ece and a reliability table of sigmoid(score difference) over all ordered pairs.

    A pair is looked at once, from the side that the scores favour: the confidence is sigmoid(|difference|), in [.5, 1].
    Candidates whose score is not finite are left out and counted as `not_finite`.

    Args:
        scores_BC: float[B, C].
        ranks_BC: i32[B, C], 1 = best, 0 = no candidate.
        bins: equal bins of confidence between .5 and 1.

    Raises:
        ValueError: no pair is left to judge.
    """
    finite_BC = np.isfinite(scores_BC)
    pairs = ordered_pairs(ranks_BC, finite_BC)
    not_finite = int(np.sum((ranks_BC > 0) & ~finite_BC))
    if not len(pairs):
        raise ValueError(f"no two candidates differ in rank and have finite scores ({not_finite} scores are not)")
    difference = _differences(scores_BC, pairs)
    p = 1.0 / (1.0 + np.exp(-np.clip(difference, -500, 500)))
    confidence, right = np.maximum(p, 1.0 - p), _right(difference)
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
    gaps = ranks_BC[pairs[:, 0], pairs[:, 2]] - ranks_BC[pairs[:, 0], pairs[:, 1]]
    return {
        "accuracy": float(right.mean()),
        "nll": float(np.mean(np.logaddexp(0.0, -difference))),
        "brier": float(np.mean((1.0 - p) ** 2)),
        "ece": float(sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in table) / len(pairs)),
        "reliability": table,
        "pairs": len(pairs),
        "not_finite": not_finite,
        "by_rank_gap": _by_label(right, gaps),
    }


def accuracy_by(scores_BC: np.ndarray, ranks_BC: np.ndarray, labels_B: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Pair accuracy and number of pairs for each label of the prompts: their kind, or who ranked them.

    Args:
        scores_BC: float[B, C]; what is not finite is left out.
        ranks_BC: i32[B, C], 1 = best, 0 = no candidate.
        labels_B: one label per prompt; prompts whose label is None are passed over.

    Returns:
        label -> {"accuracy", "pairs"}; equal scores count half.
    """
    pairs = ordered_pairs(ranks_BC, np.isfinite(scores_BC))
    labels = np.array(["" if label is None else str(label) for label in labels_B])[pairs[:, 0]]
    known = np.array([label is not None for label in labels_B])[pairs[:, 0]]
    return _by_label(_right(_differences(scores_BC, pairs[known])), labels[known])


def score_report(scores_BC: np.ndarray, lengths_BC: np.ndarray, shown_BC: np.ndarray) -> dict[str, float]:
    """Spread of the scores, their correlation with length, and how demonstrations fare against other responses.

    Args:
        scores_BC: float[B, C]; what is not finite is left out.
        lengths_BC: i32[B, C], tokens of prompt and response; 0 = no candidate.
        shown_BC: bool[B, C], which candidates are demonstrations (written by people).

    Returns:
        score_mean, score_std, score_min, score_max and length_correlation; with both kinds of candidate also
        demonstration_score_mean and sample_score_mean. A correlation with something constant is 0.
    """
    usable_BC = (lengths_BC > 0) & np.isfinite(scores_BC)
    scores, lengths = scores_BC[usable_BC], lengths_BC[usable_BC]
    if not len(scores):
        raise ValueError("no candidate has a finite score")
    spread = float(scores.std() * lengths.std())
    covariance = float(np.mean((scores - scores.mean()) * (lengths - lengths.mean())))
    found = {
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "score_min": float(scores.min()),
        "score_max": float(scores.max()),
        "length_correlation": covariance / spread if spread > 0 else 0.0,
    }
    shown, other = scores_BC[usable_BC & shown_BC], scores_BC[usable_BC & ~shown_BC]
    if len(shown) and len(other):
        found |= {"demonstration_score_mean": float(shown.mean()), "sample_score_mean": float(other.mean())}
    return found


def _differences(scores_BC: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return scores_BC[pairs[:, 0], pairs[:, 1]] - scores_BC[pairs[:, 0], pairs[:, 2]]


def _right(difference: np.ndarray) -> np.ndarray:
    return np.where(difference > 0, 1.0, np.where(difference == 0, 0.5, 0.0))


def _by_label(right: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, Any]]:
    chosen = {label: labels == label for label in np.unique(labels)}
    return {
        str(label): {"accuracy": float(right[inside].mean()), "pairs": int(inside.sum())}
        for label, inside in chosen.items()
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
