"""Evaluation statistics against brute force and numbers worked by hand."""

import itertools
import math

import numpy as np
import pytest

from gptjax.eval.best_of_n import best_of_n, best_of_n_kl
from gptjax.eval.intervals import clustered_mean
from gptjax.eval.ranking import length_only_accuracy, ordered_pairs, pair_accuracy, ranking_report


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_is_the_mean_over_all_subsets(n):
    # for every n of the 6 samples: the value of the one with the highest proxy
    rng = np.random.default_rng(n)
    proxy_BN, value_BN = rng.normal(size=(2, 3, 6))
    chosen = [
        value_N[max(subset, key=lambda i: proxy_N[i])]
        for proxy_N, value_N in zip(proxy_BN, value_BN, strict=True)
        for subset in itertools.combinations(range(6), n)
    ]
    np.testing.assert_allclose(best_of_n(proxy_BN, value_BN, n), np.mean(chosen), rtol=1e-12)


@pytest.mark.parametrize("n", [0, 7])
def test_best_of_more_samples_than_there_are_is_refused(n):
    with pytest.raises(ValueError, match=f"best of {n} cannot be estimated from 6 samples"):
        best_of_n(np.zeros((1, 6)), np.zeros((1, 6)), n)


def test_best_of_n_costs_log_n_minus_n_minus_1_over_n():
    # n = 1: 0; n = 4: log 4 - 3/4
    assert best_of_n_kl(1) == 0.0
    assert math.isclose(best_of_n_kl(4), 1.3862943611 - 0.75, rel_tol=1e-9)


def test_a_ranking_report_by_hand():
    # prompt 0: ranks 1, 2, 3 and scores log 3, 0, 0: differences log 3, log 3, 0; prompt 1: one pair, -log 3; the rest
    # are absent or tied.  p = .75, .75, .5, .25
    scores_BC = np.array([[math.log(3), 0.0, 0.0], [0.0, math.log(3), 9.0], [1.0, 2.0, 3.0]])
    ranks_BC = np.array([[1, 2, 3], [1, 2, 0], [1, 1, 1]])
    report = ranking_report(scores_BC, ranks_BC, bins=2)
    assert report["pairs"] == 4
    assert report["accuracy"] == (1 + 1 + 0.5 + 0) / 4
    nll = -(2 * math.log(0.75) + math.log(0.5) + math.log(0.25)) / 4
    assert math.isclose(report["nll"], nll, rel_tol=1e-12)
    assert math.isclose(report["brier"], (2 * 0.25**2 + 0.5**2 + 0.75**2) / 4, rel_tol=1e-12)
    # confidences .75, .75, .75 (2 of 3 right) and .5 (half right): |.75 - 2/3| * 3/4 + 0 * 1/4
    assert math.isclose(report["ece"], 0.75 * (0.75 - 2 / 3), rel_tol=1e-9)
    assert sum(row["count"] for row in report["reliability"]) == 4


def test_confident_and_wrong_is_finite():
    # difference -2000: nll 2000, Brier 1
    report = ranking_report(np.array([[-1000.0, 1000.0]]), np.array([[1, 2]]))
    assert (report["nll"], report["accuracy"]) == (2000.0, 0.0)
    assert math.isclose(report["brier"], 1.0)


def test_pairs_are_those_whose_ranks_differ_among_the_included():
    # ranks 2, 1, 2, 0: candidate 1 above 0 and above 2; without candidate 2 only above 0
    ranks_BC = np.array([[2, 1, 2, 0]])
    assert ordered_pairs(ranks_BC).tolist() == [[0, 1, 0], [0, 1, 2]]
    assert ordered_pairs(ranks_BC, np.array([[True, True, False, True]])).tolist() == [[0, 1, 0]]
    assert math.isnan(pair_accuracy(np.zeros((1, 4)), np.zeros((0, 3), int)))


def test_length_predicts_what_length_decided_and_no_more():
    # training: the longer is always better; test pairs: longer (right), shorter (wrong), equal length (half)
    train_lengths, train_ranks = np.array([[10, 5], [8, 2], [3, 7]]), np.array([[1, 2], [1, 2], [2, 1]])
    lengths_BC, ranks_BC = np.array([[9, 4], [2, 6], [5, 5]]), np.array([[1, 2], [1, 2], [1, 2]])
    found = length_only_accuracy(train_lengths, train_ranks, lengths_BC, ordered_pairs(ranks_BC))
    assert found == (1 + 0 + 0.5) / 3


def test_length_can_prefer_the_middle():
    # training: 5 beats both 1 and 9, so the fit must bend; test: 5 beats 9 and 1
    train_lengths, train_ranks = np.array([[5, 1, 9]] * 4), np.array([[1, 2, 2]] * 4)
    pairs = ordered_pairs(np.array([[1, 2, 2]]))
    assert length_only_accuracy(train_lengths, train_ranks, np.array([[5, 9, 1]]), pairs) == 1.0


def test_observations_of_one_prompt_count_as_one():
    # means of prompts 1, 2, 6; mean 3; deviation sqrt((4 + 1 + 9) / 2) = sqrt 7; standard error sqrt(7 / 3)
    values_BN = np.array([[0.0, 2.0], [2.0, 2.0], [5.0, 7.0]])
    mean, low, high = clustered_mean(values_BN, z=2.0)
    np.testing.assert_allclose([mean, low, high], [3.0, 3 - 2 * math.sqrt(7 / 3), 3 + 2 * math.sqrt(7 / 3)], rtol=1e-12)
    # repeating every observation tells nothing new
    np.testing.assert_allclose(clustered_mean(np.repeat(values_BN, 9, axis=1), z=2.0), (mean, low, high), rtol=1e-12)


def test_one_prompt_has_no_interval():
    with pytest.raises(ValueError, match="at least 2 prompts, got 1"):
        clustered_mean(np.ones((1, 5)))
