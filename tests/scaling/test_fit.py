"""Fits: exact recovery without noise, agreement with a general minimiser, refusals, warnings."""

import time

import numpy as np
import pytest
from scipy.optimize import minimize
from synthetic import LAW, grid, runs_of, scattered

from gptjax.scaling.bootstrap import bootstrap, interval
from gptjax.scaling.fit import FitConfig, fit, point_fit, residual_trends
from gptjax.scaling.law import PARAMETERS, Law
from gptjax.scaling.robust import robust_refits
from gptjax.scaling.varpro import least_squares

LAWS = [
    LAW,
    Law(E=1.82, A=482.0, alpha=0.3478, B=2085.4, beta=0.3658),
    Law(E=0.0, A=50.0, alpha=0.2, B=90.0, beta=0.25),  # nothing irreducible: E is held at its bound
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"alpha {law.alpha}")
@pytest.mark.parametrize("make", [scattered, grid])
def test_variable_projection_recovers_every_parameter(law, make):
    runs = make(law)
    found, search = point_fit(runs, FitConfig())
    np.testing.assert_allclose(found.array, law.array, rtol=1e-8, atol=1e-8)
    assert search["condition"] < 1e3


@pytest.mark.parametrize("method", ["huber", "lad"])
def test_robust_fits_recover_every_parameter(method):
    found, search = point_fit(scattered(m=40), FitConfig(method=method))
    np.testing.assert_allclose(found.array, LAW.array, rtol=1e-8)
    assert search["starts_screened"] == 4500
    assert search["starts_polished"] == 100
    assert search["starts_converged"] > 50


def predicted(theta, runs):
    a, b, e, alpha, beta = theta
    return np.logaddexp(np.logaddexp(a - alpha * np.log(runs.n), b - beta * np.log(runs.d)), e)


COSTS = {
    "varpro": lambda theta, runs: ((np.exp(predicted(theta, runs)) - runs.loss) ** 2).sum(),
    "huber": lambda theta, runs: huber(predicted(theta, runs) - np.log(runs.loss), 1e-3),
    "lad": lambda theta, runs: np.abs(predicted(theta, runs) - np.log(runs.loss)).sum(),
}


def huber(residual, delta):
    """Of the definition: r^2 / 2 inside, delta (|r| - delta / 2) outside; here over delta."""
    inside = np.abs(residual) <= delta
    return np.where(inside, residual**2 / 2, delta * (np.abs(residual) - delta / 2)).sum() / delta


@pytest.mark.parametrize("method", ["varpro", "huber", "lad"])
def test_a_general_minimiser_finds_nothing_lower(method):
    runs = scattered(m=30, noise=0.01)
    law, search = point_fit(runs, FitConfig(method=method))
    theta = np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])
    own = COSTS[method](theta, runs)
    assert own == pytest.approx(search["objective"], rel=1e-9)
    tight = {"xatol": 1e-10, "fatol": 1e-13, "maxiter": 4000, "maxfev": 4000}
    simplex = theta + np.vstack([np.zeros(5), np.diag([0.05, 0.05, 0.01, 0.003, 0.003])])
    found = minimize(
        COSTS[method], theta, args=(runs,), method="Nelder-Mead", options=tight | {"initial_simplex": simplex}
    )
    assert found.fun > own * (1 - 1e-6)
    if method != "lad":
        assert search["gradient"] < 1e-6


def test_an_outlier_moves_least_squares_and_not_absolute_deviations():
    runs = grid(budgets=4)
    runs.loss[3] *= 1.3
    moved = {method: abs(point_fit(runs, FitConfig(method=method))[0].alpha - 0.34) for method in ("varpro", "lad")}
    assert moved["lad"] < 1e-6
    assert moved["varpro"] > 1e-3


def test_weights_are_repetitions():
    runs = scattered(m=30, noise=0.01)
    twice = np.concatenate([np.arange(30), [4, 4, 7]])
    weights = np.ones((1, 30))
    weights[0, [4, 7]] = 3.0, 2.0
    weighted = least_squares(runs.n, runs.d, runs.loss, weights).law.array[0]
    repeated = least_squares(runs.n[twice], runs.d[twice], runs.loss[twice]).law.array[0]
    np.testing.assert_allclose(weighted, repeated, rtol=1e-7)


def test_many_fits_at_once_are_each_fit_alone():
    runs = scattered(m=40, noise=0.01)
    losses = runs.loss * np.exp(0.01 * np.random.default_rng(1).normal(size=(3, 40)))
    together = least_squares(runs.n, runs.d, losses).law.array
    for losses_of_one, law in zip(losses, together, strict=True):
        np.testing.assert_allclose(least_squares(runs.n, runs.d, losses_of_one).law.array[0], law, rtol=1e-7)
    near = point_fit(runs, FitConfig(method="huber"))[0]
    refit = robust_refits(runs.n, runs.d, runs.loss, np.ones((2, 40)), near, "huber").array
    np.testing.assert_allclose(refit, np.tile(near.array, (2, 1)), rtol=1e-5)


def test_branches_of_a_trunk_are_drawn_together():
    # two trunks with all the information in one: with trunks resampled, draws without it fail to see alpha
    runs = grid(noise=0.01)
    trunk = np.repeat(np.arange(21), 2)
    alone = bootstrap(runs, LAW, "varpro", draws=200, seed=0, resampling="trunks")
    shared = bootstrap(
        runs_of(runs.n, runs.d, runs.loss, trunk=trunk), LAW, "varpro", draws=200, seed=0, resampling="trunks"
    )
    assert np.std(shared.alpha) != np.std(alone.alpha)
    again = bootstrap(runs, LAW, "varpro", draws=200, seed=0, resampling="trunks")
    np.testing.assert_array_equal(again.array, alone.array)


def test_residuals_of_a_trunk_move_together():
    # one trunk, residuals of 1 %: each draw moves the whole surface by one factor
    runs = grid(noise=0.01)
    law = point_fit(runs, FitConfig())[0]
    tied = runs_of(runs.n, runs.d, law.loss(runs.n, runs.d) * 1.01, trunk=np.zeros(42))
    draws = bootstrap(tied, law, "varpro", draws=50, seed=0, resampling="residuals")
    here, there = draws.loss(1e9, 1e11), draws.loss(1e8, 1e9)
    assert np.corrcoef(here, there)[0, 1] > 0.999
    alone = bootstrap(runs, law, "varpro", draws=50, seed=0, resampling="residuals")
    assert np.corrcoef(alone.loss(1e9, 1e11), alone.loss(1e8, 1e9))[0, 1] < 0.9


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (slice(0, 5), ["5 runs cannot determine 5 parameters", "at least 6"]),
        (slice(0, 7), ["all 7 runs have one budget", "1e+18 FLOPs"]),
    ],
)
def test_too_few_runs_are_refused_in_words(keep, words):
    with pytest.raises(ValueError, match=r".") as caught:
        fit(grid().take(np.arange(42)[keep]))
    assert [word for word in words if word not in str(caught.value)] == []


def test_two_sizes_are_refused():
    n, d = np.tile([1e8, 2e8], 5), np.geomspace(1e9, 1e11, 10)
    with pytest.raises(ValueError, match="2 different model sizes"):
        fit(runs_of(n, d, LAW.loss(n, d)))


def test_an_optimum_outside_the_grid_is_flagged():
    # the same budgets with sizes 16 times too large: their smallest is 4 times the optimum
    warnings = fit(grid(shift=16.0, noise=1e-4), FitConfig(draws=40)).warnings
    assert any("the optimum" in warning and "lies below" in warning for warning in warnings)
    assert fit(grid(noise=1e-4), FitConfig(draws=40)).warnings == ()


def test_an_exponent_without_evidence_is_flagged():
    n, d = np.geomspace(1e8, 1.1e8, 12), np.geomspace(1e9, 1e12, 12)[np.random.default_rng(0).permutation(12)]
    runs = runs_of(n, d, LAW.loss(n, d) * np.exp(0.01 * np.random.default_rng(1).normal(size=12)))
    assert any(warning.startswith("alpha is not identified") for warning in fit(runs, FitConfig(draws=40)).warnings)


def test_a_law_that_does_not_fit_leaves_residuals_that_drift():
    runs = grid(noise=1e-4)
    runs.loss[:] *= 1 + 0.01 * np.log(runs.c / 1e18) ** 2
    slope, t = residual_trends(runs, LAW)["C"]
    assert slope > 0
    assert t > 3


def test_a_fit_of_245_points_is_fast():
    runs = scattered(noise=0.01)
    began = time.process_time()
    point_fit(runs, FitConfig(method="huber"))
    assert time.process_time() - began < 10


@pytest.mark.slow
def test_4000_draws_on_245_points_take_less_than_three_minutes():
    runs = scattered(noise=0.01)
    for method in ("varpro", "huber", "lad"):
        law = point_fit(runs, FitConfig(method=method))[0]
        began = time.process_time()
        bootstrap(runs, law, method, draws=4000, seed=0)
        seconds = time.process_time() - began
        print(f"{method}: 4,000 draws in {seconds:.1f} CPU seconds")
        assert seconds < 180


@pytest.mark.slow
@pytest.mark.parametrize("resampling", ["trunks", "residuals"])
def test_95_percent_intervals_cover_the_truth_in_92_to_98_percent(resampling):
    target = 1e24
    n, d = LAW.optimum(target)
    truth = {"alpha": 0.34, "beta": 0.28, "a": LAW.size_exponent, "ln N*": np.log(n), "loss": LAW.loss(n, d)}
    hits = dict.fromkeys(truth, 0)
    for seed in range(400):
        runs = grid(budgets=8, sizes=9, noise=0.005, seed=seed)
        law, _ = point_fit(runs, FitConfig())
        draws = bootstrap(runs, law, "varpro", draws=400, seed=seed, resampling=resampling)
        found = {"alpha": draws.alpha, "beta": draws.beta, "a": draws.size_exponent}
        found |= {"ln N*": np.log(draws.optimum(target)[0]), "loss": draws.loss(n, d)}
        for name, values in found.items():
            low, high = interval(values)
            hits[name] += low <= truth[name] <= high
    print({name: f"{count / 400:.3f}" for name, count in hits.items()})
    assert all(0.92 <= count / 400 <= 0.98 for count in hits.values()), hits


def test_intervals_of_a_single_noisy_grid_hold_the_truth():
    fitted = fit(grid(noise=0.005), FitConfig(draws=100))
    for name in PARAMETERS:
        low, high = fitted.interval(name, 0.999)
        assert low <= getattr(LAW, name) <= high, name
    assert fitted.rms_log_residual == pytest.approx(0.005, rel=0.3)


@pytest.mark.parametrize(("field", "value"), [("draws", 10), ("delta", 0.0), ("method", "hubr"), ("resampling", "no")])
def test_a_setting_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        FitConfig(**{field: value})
