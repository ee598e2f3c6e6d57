"""Gao's forms, their fits and peaks, and the closed-form optimum under a KL penalty."""

import numpy as np
import pytest
from golden_cases import GOLDEN

from gptjax.eval.kl_optimum import kl_optimum, kl_value
from gptjax.eval.overoptimization import fit, gold_reward, peak

EVAL2, EVAL3 = GOLDEN["EVAL2_overoptimisation_forms"], GOLDEN["EVAL3_closed_form_optimum"]
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])


@DTYPES
def test_golden_forms(dtype, tolerance):
    inputs, expected = EVAL2["inputs"], EVAL2["expected"]
    d, alpha, beta = np.array(inputs["d"], dtype), inputs["alpha"], inputs["beta"]
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(gold_reward("best_of_n", d, alpha, beta), expected["R_bon"], **close)
    np.testing.assert_allclose(gold_reward("rl", d, alpha, beta), expected["R_rl"], **close)
    iterated = gold_reward("rl", d, alpha, beta, rounds=inputs["iterations_k"])
    np.testing.assert_allclose(iterated, expected["R_rl_iterated"], **close)


def test_golden_peaks():
    inputs, expected = EVAL2["inputs"], EVAL2["expected"]
    for method, name in (("best_of_n", "peak_bon"), ("rl", "peak_rl")):
        found = peak(method, inputs["alpha"], inputs["beta"])
        np.testing.assert_allclose(found, [expected[name]["d"], expected[name]["R"]], rtol=1e-12)
        around = gold_reward(method, found.distance + np.array([-0.01, 0.0, 0.01]), inputs["alpha"], inputs["beta"])
        assert around[1] == pytest.approx(found.reward)
        assert around.argmax() == 1


def test_golden_fits():
    inputs, expected = EVAL2["inputs"], EVAL2["expected"]
    for method, reward, name in (("best_of_n", "R_bon", "bon"), ("rl", "R_rl", "rl")):
        found = fit(method, inputs["d"], expected[reward])
        np.testing.assert_allclose(found[:2], expected[f"least_squares_recovers_{name}"], rtol=1e-9)
        assert found.rms < 1e-12
    found = fit("rl", inputs["d"], expected["R_rl_iterated"], rounds=4)
    np.testing.assert_allclose(found[:2], [inputs["alpha"], inputs["beta"]], rtol=1e-9)


def test_the_wrong_form_leaves_a_residual_and_both_pass_through_zero():
    d = np.linspace(0, 4, 9)
    reward = gold_reward("rl", d, 0.6, 0.3)
    assert reward[0] == 0.0
    assert fit("best_of_n", d, reward).rms > 0.01
    assert fit("rl", d, reward).rms < 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit("rl", [1.0, 1.0], [0.1, 0.2]), "at least 2 different positive distances"),
        (lambda: fit("rl", [1.0, 2.0], [0.1, np.nan]), "must be finite"),
        (lambda: gold_reward("rl", [-1.0], 1, 1), "must not be negative, got -1.0"),
        (lambda: gold_reward("best_of_n", [1.0], 1, 1, rounds=2), "best-of-n has one round, got 2"),
        (lambda: peak("rl", 1.0, 0.0), "only if alpha and beta are positive"),
        (lambda: kl_optimum([1.0], [0.0], 0.0), "kl_coefficient must be positive, got 0.0"),
    ],
)
def test_impossible_questions_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@DTYPES
def test_golden_closed_form(dtype, tolerance):
    inputs, expected = EVAL3["inputs"], EVAL3["expected"]
    ref, reward, beta = np.array(inputs["ref"], dtype), np.array(inputs["reward"], dtype), inputs["beta"]
    found = kl_optimum(ref, reward, beta)
    np.testing.assert_allclose(
        found.policy, expected["pi_star"], rtol=max(tolerance, 1e-6 if dtype is np.float32 else 0)
    )
    np.testing.assert_allclose(found.log_z, expected["log_Z"], rtol=tolerance)
    np.testing.assert_allclose(found.objective, expected["J_star"], rtol=tolerance)
    value = kl_value(found.policy, ref, reward, beta)
    wanted = [expected[name] for name in ("mean_reward", "kl", "J_check")]
    np.testing.assert_allclose(value, wanted, rtol=10 * tolerance)
    assert kl_value(ref, ref, reward, beta).objective == pytest.approx(expected["J_of_ref"], rel=tolerance)


def test_no_other_policy_does_better_than_the_optimum():
    rng = np.random.default_rng(0)
    ref, reward = rng.dirichlet(np.ones(5), 3), rng.normal(size=(3, 5))
    best = kl_optimum(ref, reward, 0.3)
    assert kl_value(best.policy, ref, reward, 0.3).objective == pytest.approx(best.objective)
    others = rng.dirichlet(np.ones(5), (200, 3))
    assert (kl_value(others, ref, reward, 0.3).objective < best.objective).all()


def test_rewards_of_thousands_and_impossible_outcomes_stay_finite():
    found = kl_optimum(np.array([0.5, 0.5, 0.0]), np.array([0.0, 5000.0, 9000.0]), 0.5)
    np.testing.assert_allclose(found.policy, [0.0, 1.0, 0.0])
    assert found.objective == pytest.approx(5000 + 0.5 * np.log(0.5))
