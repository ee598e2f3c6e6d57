"""Gain and bias: the worked case, that the loss does not see them, and when there is nothing to normalise by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN

from gptjax.losses.preference import ranking_loss
from gptjax.train.normalise import absorbed, normalised, zero_mean, zero_mean_unit_std

CASE = GOLDEN["RM4_normalisation"]


def norm_of(gain_and_bias, dtype):
    return dict(zip(("reward_gain", "reward_bias"), jnp.asarray(gain_and_bias, dtype), strict=True))


def test_demonstrations_get_mean_0_or_samples_mean_0_and_deviation_1(dtype):
    expected, tolerance = CASE["expected"], 1e-9 if dtype == "float64" else 2e-5
    demos, samples = (
        np.array(CASE["inputs"][f"raw_scores_on_{kind}"]) for kind in ("demonstrations", "ref_policy_samples")
    )
    assert zero_mean(demos) == (1.0, expected["bias_only"])
    after = normalised(jnp.asarray(demos, dtype), norm_of(zero_mean(demos), dtype))
    np.testing.assert_allclose(after, expected["demo_after"], rtol=tolerance, atol=tolerance)
    gain, bias = zero_mean_unit_std(samples)
    np.testing.assert_allclose([gain, bias], [expected["gain"], expected["affine_bias"]], rtol=1e-12)
    after = normalised(jnp.asarray(samples, dtype), norm_of((gain, bias), dtype))
    np.testing.assert_allclose(after, expected["ref_after_affine"], rtol=tolerance, atol=tolerance)
    figures = [expected["ref_after_mean"], expected["ref_after_std"]]
    np.testing.assert_allclose([after.mean(), after.std()], figures, atol=tolerance)


def test_a_bias_changes_no_pair_loss(dtype):
    # softplus(-1.5) = .201413: demonstrations 3.5 and 2.0 as a pair, before and after
    expected = CASE["expected"]
    demos = np.array(CASE["inputs"]["raw_scores_on_demonstrations"])
    pair_BC = jnp.asarray([[demos[1], demos[0]]], dtype)
    ranks_BC = jnp.asarray([[1, 2]])
    for scores_BC, name in ((pair_BC, "before"), (normalised(pair_BC, norm_of(zero_mean(demos), dtype)), "after_bias")):
        loss, _, _ = jax.jit(ranking_loss)(scores_BC, ranks_BC)
        np.testing.assert_allclose(loss, expected[f"pair_loss_{name}"], rtol=1e-9 if dtype == "float64" else 2e-5)


def test_an_absorbed_norm_gives_normalised_values(x64):
    # h = (1, 2), head (3, -1), bias .5: raw 1.5; gain 2, bias -4: -1
    params = {"head_D": jnp.asarray([3.0, -1.0]), "bias_1": jnp.asarray([0.5]), "trunk": {"w": jnp.ones(2)}}
    norm = norm_of((2.0, -4.0), "float64")
    found = absorbed(params, norm)
    np.testing.assert_allclose(jnp.dot(jnp.asarray([1.0, 2.0]), found["head_D"]) + found["bias_1"], [-1.0])
    np.testing.assert_array_equal(found["trunk"]["w"], params["trunk"]["w"])


@pytest.mark.parametrize(
    ("function", "scores", "message"),
    [
        (zero_mean, [], "at least 1 scores, got 0"),
        (zero_mean_unit_std, [1.0], "at least 2 scores, got 1"),
        (zero_mean, [1.0, np.nan], "1 of 2 scores to normalise by are not finite"),
        (zero_mean_unit_std, [1.0, np.inf, np.nan], "2 of 3 scores to normalise by are not finite"),
        (zero_mean_unit_std, [0.3, 0.3, 0.3], r"3 scores to normalise by are all 0\.3"),
    ],
)
def test_scores_that_give_no_norm_are_refused(function, scores, message):
    with pytest.raises(ValueError, match=message):
        function(np.array(scores))
