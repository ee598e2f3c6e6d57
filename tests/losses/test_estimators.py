"""Where a KL estimate belongs: expected gradients, enumerated exactly, of each estimator as a reward and as a loss."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN

from gptjax.losses.policy import clipped_surrogate, clipped_value_loss, kl_estimates
from gptjax.losses.preference import ranking_loss
from gptjax.losses.returns import gae, kl_shaped_rewards, whitened

ONE_TOKEN, SEQUENCE = GOLDEN["PPO9_kl_gradient_estimators"], GOLDEN["PPO12_sequence_kl_needs_future_terms"]
FINITE_DIFFERENCE = 1e-8  # the expected gradients were differences of float64 values

surrogate = partial(clipped_surrogate, clip_low=0.2, clip_high=0.2)


def one_token(estimator):
    """The expected gradient of an estimator over the three outcomes of a categorical."""
    logits_V = jnp.asarray(ONE_TOKEN["inputs"]["logits"])
    ref_V, all_V = jnp.log(jnp.asarray(ONE_TOKEN["inputs"]["ref_probs"])), jnp.ones(3, bool)
    stop = jax.lax.stop_gradient

    def expectation(logits_V):
        logp_V = jax.nn.log_softmax(logits_V)
        k1_V, k2_V, k3_V = kl_estimates(logp_V, ref_V, all_V)
        per_sample_V = {
            "k1_in_reward": stop(k1_V) * logp_V,
            "k3_in_reward": stop(k3_V) * logp_V,
            "k1_as_loss": k1_V,
            "k2_as_loss": k2_V,
            "k3_as_loss": k3_V,
            "k3_as_loss_with_ratio": jnp.exp(logp_V - stop(logp_V)) * k3_V,
        }[estimator]
        return jnp.sum(stop(jnp.exp(logp_V)) * per_sample_V)

    return jax.grad(expectation)(logits_V)


@pytest.mark.parametrize("estimator", ONE_TOKEN["expected"]["expected_grad"])
def test_the_gradient_of_each_estimator_on_one_token(estimator, x64):
    # k1 as a loss has none at all; k2 as a loss, k1 in the reward and ratio x k3 have that of the reverse KL
    expected = ONE_TOKEN["expected"]
    found = one_token(estimator)
    np.testing.assert_allclose(found, expected["expected_grad"][estimator], atol=FINITE_DIFFERENCE)
    exact = {"k1_in_reward", "k2_as_loss", "k3_as_loss_with_ratio"}
    assert np.allclose(found, expected["grad_reverse_kl"], atol=1e-6) == (estimator in exact)
    assert np.allclose(found, expected["grad_forward_kl"], atol=1e-6) == (estimator == "k3_as_loss")


def test_k1_and_k3_have_the_kl_as_their_mean_and_k2_has_not(x64):
    p_V = jax.nn.softmax(jnp.asarray(ONE_TOKEN["inputs"]["logits"]))
    ref_V = jnp.log(jnp.asarray(ONE_TOKEN["inputs"]["ref_probs"]))
    means = [float(jnp.sum(p_V * k_V)) for k_V in kl_estimates(jnp.log(p_V), ref_V, jnp.ones(3, bool))]
    expected = ONE_TOKEN["expected"]
    np.testing.assert_allclose(means, [expected["E_k1"], expected["E_k2"], expected["E_k3"]], atol=1e-9)
    np.testing.assert_allclose([means[0], means[2]], expected["reverse_kl"], atol=1e-9)


def sequence_gradient(as_reward):
    """Gradient of the KL of two-token sequences, all four enumerated, by rewards with GAE or by k2 on each token."""
    logits_SV, ref_SV = (jnp.asarray(SEQUENCE["inputs"][name]) for name in ("logits", "ref_probs"))
    tokens_BR = np.array(list(itertools.product((0, 1), repeat=2)))
    states_BR = np.stack([np.zeros(4, int), 1 + tokens_BR[:, 0]], axis=1)
    mask_BR = jnp.ones((4, 2), bool)
    ref_BR = jnp.log(ref_SV)[states_BR, tokens_BR]

    def expectation(logits_SV):
        logp_BR = jax.nn.log_softmax(logits_SV)[states_BR, tokens_BR]
        old_BR = jax.lax.stop_gradient(logp_BR)
        p_B1 = jnp.exp(jnp.sum(old_BR, axis=1, keepdims=True))
        if not as_reward:
            return jnp.sum(p_B1 * kl_estimates(logp_BR, ref_BR, mask_BR)[1])
        rewards_BR = kl_shaped_rewards(jnp.zeros(4), old_BR, ref_BR, mask_BR, kl_coefficient=1.0)
        advantages_BR, _ = gae(rewards_BR, jnp.zeros((4, 2)), mask_BR, discount=1.0, trace=1.0)
        return jnp.sum(surrogate(logp_BR, old_BR, p_B1 * advantages_BR, mask_BR)[0])

    return jax.grad(expectation)(logits_SV)


def test_kl_rewards_with_gae_have_the_gradient_of_the_sequence_kl(x64):
    # the first token is charged for the KL of the second: .1666; a loss on each token alone gives .0961 there
    expected = SEQUENCE["expected"]
    found = sequence_gradient(as_reward=True)
    np.testing.assert_allclose(found, expected["expected_grad_k1_in_reward"], atol=FINITE_DIFFERENCE)
    np.testing.assert_allclose(found, expected["grad_sequence_kl"], atol=FINITE_DIFFERENCE)
    short = sequence_gradient(as_reward=False)
    np.testing.assert_allclose(short, expected["expected_grad_k2_or_ratio_k3_as_token_loss"], atol=FINITE_DIFFERENCE)
    np.testing.assert_allclose(short[1:], found[1:], atol=FINITE_DIFFERENCE)
    assert abs(short[0, 0] - found[0, 0]) > 0.07


def test_the_value_loss_takes_the_worse_of_plain_and_clipped(x64):
    # old 0, clip .2, return 1: value .5 is clipped to .2, error .8^2 > .5^2; value -1 is clipped to -.2, 2^2 > 1.2^2;
    # value .1 is not clipped, .9^2; the last is masked.  Half the sum: (.64 + 4 + .81) / 2
    values_BR, mask_BR = jnp.asarray([[0.5, -1.0, 0.1, 9.0]]), jnp.asarray([[True, True, True, False]])
    old_BR, returns_BR = jnp.zeros((1, 4)), jnp.ones((1, 4))

    def loss(values_BR, clip):
        total, count, aux = clipped_value_loss(values_BR, old_BR, returns_BR, mask_BR, clip=clip)
        return total, (count, aux["clipped"])

    (total, (count, clipped)), gradient = jax.value_and_grad(loss, has_aux=True)(values_BR, 0.2)
    np.testing.assert_allclose(total, (0.64 + 4.0 + 0.81) / 2, rtol=1e-12)
    assert (int(count), int(clipped)) == (3, 1)
    np.testing.assert_allclose(gradient, [[0.0, -2.0, -0.9, 0.0]], atol=1e-12)  # none where the clipped one counts
    (total, (_, clipped)), _ = jax.value_and_grad(loss, has_aux=True)(values_BR, None)
    np.testing.assert_allclose(total, (0.25 + 4.0 + 0.81) / 2, rtol=1e-12)
    assert int(clipped) == 0


def test_nan_outside_the_mask_reaches_no_gradient():
    # 0 * NaN is NaN, so masking after the fact would not do
    bad_BR, mask_BR = jnp.asarray([[0.1, jnp.nan]]), jnp.asarray([[True, False]])
    losses = {
        "policy": lambda x: jnp.sum(surrogate(x, bad_BR - 0.01, bad_BR, mask_BR)[0]),
        "value": lambda x: clipped_value_loss(x, bad_BR - 0.01, bad_BR + 1, mask_BR, clip=0.2)[0],
        "ranking": lambda x: ranking_loss(jnp.pad(x, ((0, 0), (1, 0))), jnp.asarray([[2, 1, 0]]))[0],
        "advantages": lambda x: jnp.sum(gae(x, bad_BR, mask_BR, discount=1.0, trace=0.9)[0]),
        "whitened": lambda x: jnp.sum(whitened(x, mask_BR)),
    }
    for name, loss in losses.items():
        gradient_BR = jax.grad(loss)(bad_BR)
        assert np.isfinite(gradient_BR).all(), name
        assert gradient_BR[0, 1] == 0.0, name


def test_one_value_or_none_is_whitened_to_zero():
    x_BR = jnp.asarray([[3.0, 5.0]])
    np.testing.assert_array_equal(whitened(x_BR, jnp.asarray([[True, False]])), [[0.0, 0.0]])
    np.testing.assert_array_equal(whitened(x_BR, jnp.zeros((1, 2), bool)), [[0.0, 0.0]])


def test_a_bias_and_the_order_of_prompts_change_no_ranking_loss(x64):
    # RM4: scores minus 2.75 have the same pair loss; prompts and candidates in another order too
    expected, bias = GOLDEN["RM4_normalisation"]["expected"], GOLDEN["RM4_normalisation"]["expected"]["bias_only"]
    np.testing.assert_allclose(expected["pair_loss_before"], expected["pair_loss_after_bias"])
    rng = np.random.default_rng(0)
    scores_BC, ranks_BC = rng.normal(size=(3, 5)), rng.integers(0, 4, (3, 5))
    loss = ranking_loss(jnp.asarray(scores_BC), jnp.asarray(ranks_BC))[0]
    biased = ranking_loss(jnp.asarray(scores_BC + bias), jnp.asarray(ranks_BC))[0]
    np.testing.assert_allclose(biased, loss, rtol=1e-12)
    turned = [jnp.asarray(x[::-1, [3, 1, 4, 0, 2]]) for x in (scores_BC, ranks_BC)]
    np.testing.assert_allclose(ranking_loss(*turned)[0], loss, rtol=1e-12)
