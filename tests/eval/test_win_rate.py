"""Win rates: by hand, and an interval that covers the truth as often as it says."""

import math

import numpy as np
import pytest

from gptjax.eval.intervals import wilson
from gptjax.eval.win_rate import comparisons_needed, length_controlled, win_rate


def test_a_win_rate_by_hand():
    # prompt 0: won in both orders; prompt 1: won when shown first only; prompt 2: a tie and a loss
    found = win_rate([[1.0], [1.0], [0.5]], [[1.0], [0.0], [0.0]])
    means = [1.0, 0.5, 0.25]
    error = np.std(means, ddof=1) / math.sqrt(3)
    assert found.rate == pytest.approx(1.75 / 3)
    assert found.standard_error == pytest.approx(error)
    assert found.order_disagreement == pytest.approx(2 / 3)
    assert found.ties == pytest.approx(1 / 6)
    n = found.rate * (1 - found.rate) / error**2
    assert (found.low, found.high) == pytest.approx(wilson(found.rate, n))


def test_without_clusters_and_ties_it_is_the_wilson_interval_of_the_prompts():
    # both orders agree, so 30 prompts are 30 trials: 18 won; ddof 1 makes n 29
    wins = np.array([1.0] * 18 + [0.0] * 12)[:, None]
    found = win_rate(wins, wins)
    assert (found.low, found.high) == pytest.approx(wilson(0.6, 29))
    assert found.order_disagreement == 0.0


def test_repeating_judgements_tells_nothing_new():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, 40, 2)) * 1.0
    once, nine_times = win_rate(first, second), win_rate(np.repeat(first, 9, 1), np.repeat(second, 9, 1))
    np.testing.assert_allclose(once, nine_times, rtol=1e-12)


def test_winning_always_leaves_room_for_doubt():
    # 10 of 10: Wilson's low end is 1 / (1 + z^2 / 10)
    found = win_rate(np.ones((10, 1)), np.ones((10, 1)))
    assert (found.rate, found.high) == pytest.approx((1.0, 1.0))
    assert found.low == pytest.approx(1 / (1 + 1.959964**2 / 10))
    assert win_rate(np.full((10, 1), 0.5), np.full((10, 1), 0.5)).low < 0.3


def test_wilson_by_its_equation():
    # both ends solve |rate - p| = z sqrt(p (1 - p) / n)
    for p in wilson(0.3, 50):
        assert abs(0.3 - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / 50))


def test_three_points_at_one_half_need_1068_comparisons():
    assert comparisons_needed(0.03) == 1068
    assert comparisons_needed(0.01, rate=0.9) == math.ceil(1.959964**2 * 0.09 / 1e-4)


def test_the_interval_covers_the_truth_in_95_of_100_runs():
    # 2,000 runs of 150 prompts; the chance to win differs from prompt to prompt (Beta(3, 2), mean 0.6), a judgement
    # ties with 10 %, and the judge favours the answer shown first by 5 points.  Independent judgements would be
    # overconfident.
    rng = np.random.default_rng(0)
    runs, prompts, pairs = 2000, 150, 2
    p = rng.beta(3, 2, (runs, prompts, 1)) * 0.9 + 0.05
    truth = 0.1 * 0.5 + 0.9 * (0.6 * 0.9 + 0.05)

    def judged(shift):
        wins = (rng.uniform(size=(runs, prompts, pairs)) < p + shift) * 1.0
        return np.where(rng.uniform(size=wins.shape) < 0.1, 0.5, wins)

    first, second = judged(0.05), judged(-0.05)
    found = [win_rate(*orders) for orders in zip(first, second, strict=True)]
    covered = np.mean([result.low <= truth <= result.high for result in found])
    naive = np.mean(
        [wilson(result.rate, 4 * prompts)[0] <= truth <= wilson(result.rate, 4 * prompts)[1] for result in found]
    )
    assert 0.93 <= covered <= 0.97
    assert naive < covered - 0.02


def test_length_control_takes_the_judges_love_of_length_away():
    # the judge looks at length only: 0.8 for the longer answer.  The policy is longer in 9 of 10 pairs.
    rng = np.random.default_rng(0)
    longer = rng.uniform(size=(2000, 1)) < 0.9
    mine, other = np.where(longer, 60, 40) + rng.integers(0, 5, longer.shape), np.full(longer.shape, 50)
    outcome = (rng.uniform(size=longer.shape) < np.where(longer, 0.8, 0.2)) * 1.0
    assert outcome.mean() > 0.7
    assert length_controlled(outcome, mine, other) == pytest.approx(0.5, abs=0.05)


def test_with_equal_lengths_the_controlled_rate_is_the_raw_one():
    outcome = np.array([[1.0, 0.5, 0.0, 1.0, 1.0]])  # 0.7; the prior's pull is below a thousandth
    assert length_controlled(outcome, np.ones((1, 5)), np.ones((1, 5))) == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: win_rate(np.ones((1, 2)), np.ones((1, 2))), r"B >= 2"),
        (lambda: win_rate(np.ones((3, 2)), np.ones((2, 3))), r"\(3, 2\) and \(2, 3\)"),
        (lambda: win_rate(np.full((3, 1), 0.7), np.ones((3, 1))), "must be 1"),
        (lambda: win_rate(np.full((3, 1), np.nan), np.ones((3, 1))), "must be 1"),
        (lambda: wilson(1.2, 3), "rate in"),
        (lambda: comparisons_needed(0.0), "half_width must be positive"),
        (lambda: length_controlled(np.ones((2, 1)), np.ones((2, 1)), np.ones((1, 1))), "two lengths"),
    ],
)
def test_impossible_judgements_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
