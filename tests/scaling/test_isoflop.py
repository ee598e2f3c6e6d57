"""IsoFLOP minima, the envelope and the other forms: exact where a form is exact, flagged where there is no minimum."""

import numpy as np
import pytest
from synthetic import LAW, grid, runs_of

from gptjax.scaling.envelope import envelope
from gptjax.scaling.forms import KaplanLaw, OffsetPowerLaw, RepeatedData, kaplan_law, offset_power_law, repeated_data
from gptjax.scaling.isoflop import minima, power_law


def test_a_true_parabola_is_recovered():
    # L = 3 + .1 (ln N - ln 1e8)^2, five sizes off centre
    n = 1e8 * np.exp([-1.0, -0.6, -0.1, 0.5, 1.2])
    runs = runs_of(n, 1e18 / (6 * n), 3 + 0.1 * np.log(n / 1e8) ** 2)
    (minimum,), _ = minima(runs, LAW, noise=0.0)
    assert minimum.n == pytest.approx(1e8)
    assert minimum.loss == pytest.approx(3.0)
    assert minimum.r2 == pytest.approx(1.0)
    assert minimum.flags == ()


def test_three_methods_agree_and_find_the_exponent_of_the_law():
    runs = grid()
    found, draws = minima(runs, LAW, noise=0.002)
    for minimum in found:
        n = LAW.optimum(minimum.c)[0]
        assert minimum.n == pytest.approx(n, rel=0.02)
        assert minimum.n_akima == pytest.approx(n, rel=0.02)
        assert minimum.spread < 1.02
        assert minimum.interval[0] < n < minimum.interval[1]
    line, data = power_law(found, draws, 6.0), power_law(found, draws, 6.0, tokens=True)
    assert line.exponent == pytest.approx(LAW.size_exponent, abs=1e-3)
    assert line.exponent + data.exponent == pytest.approx(1.0)
    assert line.interval[0] < line.exponent < line.interval[1]


@pytest.mark.parametrize(("shift", "side"), [(16.0, "smallest"), (1 / 16, "largest")])
def test_a_minimum_at_the_edge_is_flagged_and_enters_no_power_law(shift, side):
    found, draws = minima(grid(budgets=3, shift=shift), LAW, noise=0.001)
    assert all(f"the lowest loss is at the {side} size: minimum at grid edge" in minimum.flags for minimum in found)
    assert all(minimum.n is None for minimum in found)
    assert power_law(found, draws, 6.0) is None


def test_losses_that_curve_downwards_have_no_minimum():
    n = 1e8 * np.geomspace(0.5, 2, 5)
    (minimum,), _ = minima(runs_of(n, 1e18 / (6 * n), 3 - np.log(n / 1e8) ** 2), LAW, noise=0.0)
    assert any("negative curvature" in flag for flag in minimum.flags)


def test_a_budget_of_two_sizes_is_passed_over():
    assert minima(grid(budgets=2, sizes=2), LAW, noise=0.0)[0] == []


def test_the_large_batch_sweep_of_the_pilot_is_flagged():
    # losses at 1e12 FLOPs with 2,048 tokens a batch: the smallest size is best for want of steps
    n = np.array([33e3, 68e3, 115e3, 251e3, 356e3])
    loss = np.array([1.7043, 1.7789, 1.7947, 2.0416, 2.1340])
    (minimum,), _ = minima(runs_of(n, 1e12 / (6 * n), loss), LAW, noise=0.002)
    assert any("minimum at grid edge" in flag for flag in minimum.flags)


def test_the_envelope_finds_the_size_that_leads():
    n, c = np.repeat([1e7, 4e7, 1.6e8], 12), np.tile(np.geomspace(1e16, 1e20, 12), 3)
    found = envelope(runs_of(n, c / (6 * n), LAW.loss(n, c / (6 * n)), c))
    assert found.exponent > 0.2
    assert set(found.n) == {1e7, 4e7, 1.6e8}
    assert (np.diff(found.n) >= 0).all()
    assert envelope(grid()) is None  # no size has two horizons


def test_offset_power_law_is_recovered():
    c = np.geomspace(1e18, 1e22, 12)
    found = offset_power_law(c, OffsetPowerLaw(E=1.5, K=900.0, gamma=0.15).loss(c))
    np.testing.assert_allclose([found.E, found.K, found.gamma], [1.5, 900.0, 0.15], rtol=1e-8)


def test_kaplans_form_is_recovered():
    runs, law = grid(), KaplanLaw(n_c=6.4e13, alpha_n=0.076, d_c=1.8e13, alpha_d=0.103)
    found = kaplan_law(runs.n, runs.d, law.loss(runs.n, runs.d))
    np.testing.assert_allclose(list(vars(found).values()), [6.4e13, 0.076, 1.8e13, 0.103], rtol=1e-8)


def test_repeated_tokens_by_hand():
    # one epoch is worth itself; with r 1 and 2 epochs, U (1 + 1 - e^-1)
    rule = RepeatedData(r_d=1.0)
    assert rule.tokens(50.0, 100.0) == 50.0
    assert rule.tokens(200.0, 100.0) == pytest.approx(100 * (2 - np.exp(-1)))
    # four epochs under the published constant are worth 3.7 and more
    assert RepeatedData().tokens(4.0, 1.0) > 3.7


def test_what_repeating_is_worth_is_recovered():
    runs, truth = grid(), RepeatedData(r_d=12.0, r_n=4.0)
    unique = runs.d / 4
    found = repeated_data(runs.n, runs.d, unique, truth.loss(runs.n, runs.d, unique, LAW), LAW)
    assert (found.r_d, found.r_n) == (pytest.approx(12.0), pytest.approx(4.0))
    with pytest.raises(ValueError, match="no run repeats data"):
        repeated_data(runs.n, runs.d, runs.d, runs.loss, LAW)
