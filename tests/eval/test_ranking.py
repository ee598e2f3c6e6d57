"""Cuts and figures of held-out comparisons, by hand, and the accuracy that nobody can beat."""

import math

import numpy as np
import pytest

from gptjax.eval.ranking import accuracy_by, ordered_pairs, pair_accuracy, ranking_report, score_report


def test_calibration_of_eight_pairs():
    # the specification states accuracy .6875, NLL .485359 and Brier score .165082; on a grid of tenths only these eight
    # differences (5 right, 2 wrong, 1 tie) give all three
    difference = np.array([0.5, 1.0, 1.5, 2.0, 3.0, -0.3, -0.8, 0.0])
    report = ranking_report(np.stack([difference, np.zeros(8)], axis=1), np.array([[1, 2]] * 8), bins=5)
    assert report["accuracy"] == 0.6875
    np.testing.assert_allclose([report["nll"], report["brier"]], [0.485359, 0.165082], atol=5e-7)
    # confidences .5, .574 | .622, .690 | .731 | .818, .881 | .953 in bins of .1; right: .5, 0 | 1, 0 | 1 | 1, 1 | 1
    c = 1 / (1 + np.exp(-np.abs(difference)))
    bins = [([7, 5], 0.25), ([0, 6], 0.5), ([1], 1.0), ([2, 3], 1.0), ([4], 1.0)]
    assert [row["count"] for row in report["reliability"]] == [2, 2, 1, 2, 1]
    expected = sum(len(inside) / 8 * abs(c[inside].mean() - accuracy) for inside, accuracy in bins)
    np.testing.assert_allclose(report["ece"], expected, rtol=1e-12)


def test_accuracy_by_the_gap_between_ranks():
    # ranks 1, 2, 3 with scores 1, 2, 0: of gap 1 one is wrong and one right, gap 2 is right; the tie is half right
    report = ranking_report(np.array([[1.0, 2.0, 0.0], [5.0, 5.0, 0.0]]), np.array([[1, 2, 3], [1, 2, 0]]))
    assert report["by_rank_gap"] == {"1": {"accuracy": 0.5, "pairs": 3}, "2": {"accuracy": 1.0, "pairs": 1}}


def test_accuracy_by_kind_and_by_labeler():
    scores_BC, ranks_BC = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), np.array([[1, 2], [2, 1]] * 2)
    found = accuracy_by(scores_BC, ranks_BC, ["chat", "chat", "qa", None])
    assert found == {"chat": {"accuracy": 0.5, "pairs": 2}, "qa": {"accuracy": 0.5, "pairs": 1}}
    assert accuracy_by(scores_BC, ranks_BC, [None] * 4) == {}


def test_scores_that_are_not_finite_are_left_out_and_counted():
    scores_BC = np.array([[1.0, 0.0, np.nan], [np.inf, 0.0, np.nan]])
    report = ranking_report(scores_BC, np.array([[1, 2, 3], [1, 2, 0]]))
    assert (report["pairs"], report["accuracy"], report["not_finite"]) == (1, 1.0, 2)
    with pytest.raises(ValueError, match=r"no two candidates differ in rank and have finite scores \(2 scores are not"):
        ranking_report(np.full((1, 2), np.nan), np.array([[1, 2]]))


def test_spread_length_and_demonstrations_of_scores():
    # scores 1, 2, 3 at lengths 2, 4, 6 (correlation 1); the NaN and the absent candidate do not count
    scores_BC, lengths_BC = np.array([[1.0, 2.0, 9.0], [3.0, np.nan, 0.0]]), np.array([[2, 4, 0], [6, 1, 0]])
    shown_BC = np.array([[True, False, False], [False, True, False]])
    found = score_report(scores_BC, lengths_BC, shown_BC)
    expected = {"score_mean": 2.0, "score_std": math.sqrt(2 / 3), "score_min": 1.0, "score_max": 3.0}
    expected |= {"length_correlation": 1.0, "demonstration_score_mean": 1.0, "sample_score_mean": 2.5}
    assert found == pytest.approx(expected)
    assert score_report(np.array([[1.0, 2.0]]), np.array([[3, 3]]), np.zeros((1, 2), bool))["length_correlation"] == 0.0
    with pytest.raises(ValueError, match="no candidate has a finite score"):
        score_report(np.array([[np.nan]]), np.array([[3]]), np.zeros((1, 1), bool))


def test_no_score_beats_the_ceiling_of_bradley_terry_labels():
    # labels drawn with probability sigmoid(d): the gold score reaches E[max(sigmoid(d), 1 - sigmoid(d))], others less
    rng = np.random.default_rng(0)
    gold_BC = rng.normal(size=(20_000, 2)) * 1.5
    difference = gold_BC[:, 0] - gold_BC[:, 1]
    first = rng.random(20_000) < 1 / (1 + np.exp(-difference))
    ranks_BC = np.where(first[:, None], [1, 2], [2, 1])
    ceiling = float(np.mean(1 / (1 + np.exp(-np.abs(difference)))))
    pairs = ordered_pairs(ranks_BC)
    error = math.sqrt(ceiling * (1 - ceiling) / 20_000)
    assert abs(pair_accuracy(gold_BC, pairs) - ceiling) < 3 * error
    accuracies = [pair_accuracy(gold_BC + noise * rng.normal(size=(20_000, 2)), pairs) for noise in (0.3, 1.0, 3.0)]
    assert ceiling > accuracies[0] > accuracies[1] > accuracies[2] > 0.5
