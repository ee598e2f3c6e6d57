"""Metrics picked out of a log, smoothed and put in words."""

import numpy as np
import pytest

from gptjax.run.report.series import course, number, series, smooth


def test_series_takes_the_rows_that_have_a_finite_value():
    rows = [
        {"step": 1, "a": 2},
        {"step": 2},
        {"step": 3, "a": float("nan")},
        {"step": 4, "a": "x"},
        {"step": 5, "a": 0.5},
    ]
    steps, values = series(rows, "a")
    assert steps.tolist() == [1, 5]
    assert values.tolist() == [2, 0.5]
    assert series(rows, "b")[0].shape == (0,)


@pytest.mark.parametrize(("value", "expected"), [(2, 2.0), (0.5, 0.5), (True, None), ("1", None), (float("inf"), None)])
def test_only_finite_numbers_are_numbers(value, expected):
    assert number(value) == expected


def test_smoothing_averages_inside_and_narrows_at_the_start():
    values = np.zeros(80)
    values[[0, 40, 79]] = 5.0, 10.0, 3.0  # half-width 2: five values inside, one at the start, three at the end
    smoothed = smooth(values)
    assert smoothed[0] == 5.0
    assert smoothed[1] == pytest.approx(5 / 3)
    np.testing.assert_allclose(smoothed[37:44], [0, 2, 2, 2, 2, 2, 0], atol=1e-12)
    assert smoothed[79] == pytest.approx(1.0)
    assert smooth(np.zeros(0)).shape == (0,)
    np.testing.assert_array_equal(smooth(np.array([1.0, 2.0])), [1.0, 2.0])


def test_smoothing_leaves_a_constant_exactly_as_it_is():
    np.testing.assert_array_equal(smooth(np.full(2000, 1e-3)), np.full(2000, 1e-3))


def test_a_course_compares_the_means_of_the_ends():
    steps = np.arange(1.0, 41.0)
    values = np.concatenate([[4.0, 6.0], np.full(36, 3.0), [1.0, 2.0]])  # a twentieth of 40 values is two
    assert course("The loss", steps, values, "nats") == "The loss fell from 5 to 1.5 nats by step 40"
    assert course("It", steps, values[::-1], "") == "It rose from 1.5 to 5 by step 40"
    assert course("It", steps, np.full(40, 0.97), "") == "It stayed at 0.97 by step 40"
    assert course("It", steps[:1], values[:1], "nats") == "It is 4 nats at step 1, the only one logged"
