"""What a finished reward model is reported by: held-out accuracy in several cuts, calibration, bias towards length."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptjax.data.preferences import Comparison, RewardReport
from gptjax.data.ratings import RatedResponses
from gptjax.eval.answers import Answer
from gptjax.eval.ranking import (
    accuracy_by,
    length_only_accuracy,
    ordered_pairs,
    pair_accuracy,
    ranking_report,
    score_report,
)
from gptjax.losses.rating import MIDPOINT
from gptjax.run.progress import note
from gptjax.types import PromptBatch, RatingBatch, RewardBatch

Judged = Comparison | RatedResponses
Rows = RewardBatch | RatingBatch


def brief(scores_BC: np.ndarray, rows: Rows, judged: Sequence[Judged]) -> dict[str, float]:
    """The held-out figures that are followed while training."""
    found = {}
    ranks_BC = ranks(rows, judged)
    if len(ordered_pairs(ranks_BC)):
        report = ranking_report(scores_BC, ranks_BC)
        found = {name: report[name] for name in ("accuracy", "nll", "brier", "ece")}
    return found | rating_error(scores_BC, rows)


def full(
    scores_BC: np.ndarray, rows: Rows, judged: Sequence[Judged], train_rows: Rows, train: Sequence[Judged]
) -> dict[str, Any]:
    """All held-out figures of a finished model.

    Args:
        scores_BC: float[B, C], raw scores of `rows`.
        rows: held-out batch; its row i renders `judged[i]`.
        judged: who said what of it.
        train_rows, train: likewise for training; a score that sees nothing but the length is fitted on them.
    """
    ranks_BC, shown_BC = ranks(rows, judged), has_source(rows, judged, "reference")
    found = rating_error(scores_BC, rows) | score_report(scores_BC, rows.lengths_BC, shown_BC)
    if not len(ordered_pairs(ranks_BC)):
        return found
    found |= ranking_report(scores_BC, ranks_BC)
    found |= {
        "by_kind": accuracy_by(scores_BC, ranks_BC, [_kind(given) for given in judged]),
        "by_labeler": accuracy_by(scores_BC, ranks_BC, [given.extra.get("labeler") for given in judged]),
    }
    lengths = (train_rows.lengths_BC, ranks(train_rows, train), rows.lengths_BC)
    found["length_only_accuracy"] = length_only_accuracy(*lengths, ordered_pairs(ranks_BC))
    pairs = ordered_pairs(ranks_BC, has_source(rows, judged, "sampled") & np.isfinite(scores_BC))
    if len(pairs):
        gold_BC = np.zeros(ranks_BC.shape)
        for row, given in enumerate(judged):
            gold_BC[row, : len(given.responses)] = [response.extra.get("gold", 0.0) for response in given.responses]
        found |= {
            "sampled_pairs": len(pairs),
            "sampled_pair_accuracy": pair_accuracy(scores_BC, pairs),
            "sampled_pair_bayes_accuracy": pair_accuracy(gold_BC, pairs),
            "length_only_accuracy": length_only_accuracy(*lengths, pairs),
        }
    return found


def rating_error(scores_BC: np.ndarray, rows: Rows) -> dict[str, float]:
    """rating_rmse and rating_mean_absolute_error (points) of predicted ratings; empty where nothing is rated."""
    if not isinstance(rows, RatingBatch):
        return {}
    usable_BC = (rows.weights_BC > 0) & np.isfinite(scores_BC)
    if not usable_BC.any():
        return {}
    error = scores_BC[usable_BC] + MIDPOINT - rows.ratings_BC[usable_BC]
    weights = rows.weights_BC[usable_BC]
    return {
        "rating_rmse": float(np.sqrt(np.average(error**2, weights=weights))),
        "rating_mean_absolute_error": float(np.average(np.abs(error), weights=weights)),
    }


def ranks(rows: Rows, judged: Sequence[Judged]) -> np.ndarray:
    """i32[B, C], as ranked, or in the order of the ratings; 0 = no candidate, or not rated."""
    if isinstance(rows, RewardBatch):
        return rows.ranks_BC
    ranks_BC = np.zeros(rows.lengths_BC.shape, np.int32)
    for row, given in enumerate(judged):
        ranks_BC[row, : len(given.responses)] = given.ranks
    return ranks_BC


def has_source(rows: Rows, judged: Sequence[Judged], source: str) -> np.ndarray:
    """bool[B, C], candidates that the file says come from there ("reference": written by a person)."""
    found_BC = np.zeros(rows.lengths_BC.shape, bool)
    for row, given in enumerate(judged):
        for column, response in enumerate(given.responses):
            found_BC[row, column] = response.extra.get("source") == source
    return found_BC


def demonstrations(rows: Rows, judged: Sequence[Judged]) -> np.ndarray:
    """bool[B, C], the responses that people wrote, or the best-ranked ones where there are none."""
    shown_BC = has_source(rows, judged, "reference")
    return shown_BC if shown_BC.any() else ranks(rows, judged) == 1


def data_figures(split: str, rows: Rows, judged: Sequence[Judged], report: RewardReport) -> dict[str, int]:
    """What became of a split, said on stderr too if something was left out."""
    better = ordered_pairs(ranks(rows, judged))
    without_pair = len(report.kept) - len(np.unique(better[:, 0]))
    if report.dropped:
        note(f"{split}: {report.dropped} of {report.comparisons} prompts dropped, longer than the row")
    if without_pair and isinstance(rows, RewardBatch):
        note(f"{split}: {without_pair} of {len(report.kept)} prompts have nothing but ties and teach nothing")
    return {
        "prompts": report.comparisons,
        "dropped_too_long": report.dropped,
        "prompts_without_pair": without_pair,
        "responses": report.responses,
        "responses_cut_off": report.unended,
        "pairs": len(better),
    }


def sampled_rows(prompts: PromptBatch, answers: Sequence[Answer]) -> RewardBatch:
    """One candidate per prompt (all ranked 1): the prompt and the answer's tokens."""
    columns = prompts.tokens_BP.shape[1]
    ids = [
        [*tokens_P[columns - length :], *answer.tokens]
        for tokens_P, length, answer in zip(prompts.tokens_BP, prompts.lengths_B, answers, strict=True)
    ]
    lengths_BC = np.array([[len(row)] for row in ids], np.int32)
    tokens_BCT = np.zeros((len(ids), 1, lengths_BC.max()), np.int32)
    for row, tokens in enumerate(ids):
        tokens_BCT[row, 0, : len(tokens)] = tokens
    return RewardBatch(tokens_BCT=tokens_BCT, lengths_BC=lengths_BC, ranks_BC=np.ones_like(lengths_BC))


def _kind(given: Judged) -> str | None:
    """The kind of prompt that the file names, or the form of a question about this Python's library."""
    return given.extra.get("kind", given.extra.get("form"))
