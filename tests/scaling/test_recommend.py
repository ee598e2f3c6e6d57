"""Recommendation, validation and rules: the law's own answers on exact runs, warnings where nothing supports them."""

import dataclasses
import math

import numpy as np
import pytest
from synthetic import LAW, grid, runs_of

from gptjax.scaling.accounting import counts
from gptjax.scaling.fit import FitConfig, fit
from gptjax.scaling.recommend import ShapeRule, recommend, shape_of
from gptjax.scaling.rules import critical_batch, deepseek_law, own_rule, step_law
from gptjax.scaling.validate import holdout, rolling_origin, straight_line

FEW = FitConfig(draws=60)


@pytest.fixture(scope="module")
def fitted():
    return fit(grid(noise=1e-5), FEW)


def test_the_optimum_and_its_price(fitted):
    r = recommend(fitted, 4e21)
    n, d = LAW.optimum(4e21)
    assert r.values["n"] == pytest.approx(n, rel=0.01)
    assert r.values["tokens_per_parameter"] == pytest.approx(d / n, rel=0.02)
    low, high = r.intervals["n"]["95%"]
    assert low < n < high
    assert low <= r.intervals["n"]["80%"][0]
    half = next(a for a in r.alternatives if a.n == pytest.approx(r.values["n"] / 2))
    assert fitted.law.loss(half.n, half.d) == pytest.approx(r.values["loss"])
    assert half.compute == pytest.approx(6 * half.n * half.d / 4e21, rel=1e-3)
    assert half.compute > 1
    assert half.same_compute_loss > r.values["loss"]
    assert r.warnings == ()


def test_an_extrapolation_is_never_silent(fitted):
    warnings = recommend(fitted, 1e24).warnings
    assert any("times the largest run's" in warning for warning in warnings)


def test_a_budget_that_is_not_positive_is_refused(fitted):
    with pytest.raises(ValueError, match="flops must be positive, got 0"):
        recommend(fitted, 0.0)


@pytest.mark.parametrize("n", [1e7, 1.5e8, 7e9, 7e10])
def test_a_shape_has_about_the_parameters_and_the_aspect(n):
    rule = ShapeRule(parameters="non_embedding", head_width=64)
    config, found = shape_of(n, rule)
    assert found == counts(config).non_embedding
    assert found == pytest.approx(n, rel=0.15)
    assert config.width % 64 == 0
    assert 50 < config.width / config.layers < 200


def test_a_shape_is_as_deep_as_the_runs_if_they_are_all_alike(fitted):
    rule = ShapeRule(head_width=16, vocab_size=256)
    free = recommend(fitted, 4e21, rule).shape

    def with_depths(*depths):
        rows = [row | {"layers": depths[i % len(depths)]} for i, row in enumerate(fitted.runs.rows)]
        return dataclasses.replace(fitted, runs=dataclasses.replace(fitted.runs, rows=tuple(rows)))

    alike = recommend(with_depths(3), 4e21, rule)
    assert alike.shape.layers == 3 != free.layers
    assert alike.shape_parameters == pytest.approx(alike.values["n"], rel=0.01)
    assert recommend(with_depths(3, 4), 4e21, rule).shape == free
    assert recommend(with_depths(3), 4e21, dataclasses.replace(rule, layers=5)).shape.layers == 5


@pytest.mark.parametrize(("field", "value"), [("parameters", "all"), ("aspect", 0.0), ("layers", 0)])
def test_a_shape_rule_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        ShapeRule(**{field: value})


def test_published_rules_by_hand():
    assert critical_batch(math.e**0.21).batch_tokens == pytest.approx(2e8 / math.e)
    assert step_law(1.0, 1.0).peak_lr == pytest.approx(1.79)
    assert step_law(1e9, 1e11).batch_tokens == pytest.approx(0.58 * 1e11**0.571)
    assert deepseek_law(1e20).batch_tokens == pytest.approx(0.2920 * 1e20**0.3271)


def test_ones_own_rule_grows_from_the_best_run_of_the_largest_budget():
    runs = runs_of([1e6, 1e6], [1e8, 2e8], [3.0, 2.9])
    for row, batch, rate in zip(runs.rows, (100, 200), (0.1, 0.2), strict=True):
        row |= {"batch_tokens": batch, "peak_lr": rate}
    setting = own_rule(runs, 2e9)  # ten times the data: 10^.38 the batch, its root the rate
    assert setting.batch_tokens == pytest.approx(200 * 10**0.38)
    assert setting.peak_lr == pytest.approx(0.2 * 10**0.19)
    assert own_rule(runs_of([1e6], [1e8], [3.0]), 1e9) is None


def test_the_straight_line_by_hand():
    # lowest losses 4 at C 1 and 2 at C 10: a line of slope -log10 2, so 1 at C 100
    runs = runs_of([1.0, 2.0, 1.0, 2.0], [1.0] * 4, [4.0, 5.0, 2.0, 3.0], [1.0, 1.0, 10.0, 10.0])
    assert straight_line(runs, 100.0) == pytest.approx(1.0)
    assert straight_line(runs.take(runs.c == 1.0), 100.0) is None


def test_held_out_budgets_are_predicted_better_than_by_the_straight_line():
    predictions = holdout(grid(noise=0.001), FEW, 2)
    assert [round(p.compute_ratio) for p in predictions] == [4, 16]
    for p in predictions:
        assert p.passed
        assert abs(p.error) < abs(p.straight_error)
        assert p.inside == (p.interval[0] <= p.loss <= p.interval[1])


def test_the_gate_is_one_percent_at_four_times_and_two_at_ten():
    p = holdout(grid(noise=0.001), FEW, 1)[0]
    assert p.allowed_error == pytest.approx(0.01)
    assert dataclasses.replace(p, compute_ratio=10.0).allowed_error == pytest.approx(0.02)
    assert not dataclasses.replace(p, error=-0.03).passed


def test_the_held_out_losses_do_not_enter_the_fit():
    runs = grid(noise=0.001)
    before = holdout(runs, FEW, 1)[0].predicted
    last = runs.budget == runs.budget.max()
    runs.loss[last] += 1.0
    assert holdout(runs, FEW, 1)[0].predicted == before


def test_rolling_origin_predicts_every_budget_from_the_third():
    found = rolling_origin(grid(budgets=4, noise=0.001), FEW)
    np.testing.assert_allclose([p.c for p in found], [1.6e19, 6.4e19])


def test_holding_out_too_much_is_refused():
    with pytest.raises(ValueError, match="5 budgets held out of 6"):
        holdout(grid(), FEW, 5)
