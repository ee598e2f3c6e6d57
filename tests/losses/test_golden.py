"""The worked cases of tests/golden/objectives.json, in float32 and float64, and not near what known bugs give."""

import jax
import jax.numpy as jnp
import numpy as np
from golden_cases import case, close, far

from gptjax.losses import cross_entropy, policy, preference, returns
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.rollout import finished_scores


def test_next_token_loss_shifts_once_and_masks_by_length(dtype):
    array, expected, inputs = case("LM1_shift_and_mask", dtype)
    tokens_BT, logits_BTV = array("tokens", "int32"), array("logits")
    weights_BT = (np.arange(1, 5)[None] < np.array(inputs["lengths"])[:, None]).astype(dtype)
    close(weights_BT, expected["target_weights"], dtype)
    sums = cross_entropy.nll_sums(logits_BTV[:, :-1], tokens_BT[:, 1:], jnp.asarray(weights_BT))
    close(sums.nll_sum, expected["nll_sum"], dtype)
    close(sums.weight_sum, expected["n_targets"], dtype)
    loss = sums.nll_sum / sums.weight_sum
    close(loss, expected["loss"], dtype)
    close(sums.correct_sum / sums.weight_sum, expected["accuracy"], dtype)
    far(loss, expected["WRONG_loss_if_mask_is_target_ne_pad"])
    far(loss, expected["WRONG_loss_if_mean_of_row_means"])


def test_z_loss_stands_apart_from_cross_entropy(dtype):
    array, expected, inputs = case("LM3_z_loss", dtype)
    targets_BT = array("targets", "int32")[None]

    def total(logits_TV):
        sums = cross_entropy.nll_sums(logits_TV[None], targets_BT, jnp.ones((1, 2), dtype))
        return (sums.nll_sum + inputs["z_coef"] * sums.z_sum) / sums.weight_sum, sums

    (value, sums), gradient = jax.value_and_grad(total, has_aux=True)(array("logits"))
    close(value, expected["total"], dtype)
    close(sums.nll_sum / 2, expected["ce_mean"], dtype)
    close(gradient, expected["grad_total_wrt_logits"], dtype)
    far(jnp.exp(sums.nll_sum / 2), expected["WRONG_perplexity_if_z_kept"])


def padded_ranking(inputs, dtype):
    widest = max(map(len, inputs["rewards"]))
    scores, ranks = np.zeros((2, widest)), np.zeros((2, widest), np.int32)
    for row, (reward, rank) in enumerate(zip(inputs["rewards"], inputs["ranks"], strict=True)):
        scores[row, : len(reward)], ranks[row, : len(rank)] = reward, rank
    return jnp.asarray(scores, dtype), jnp.asarray(ranks)


def test_a_pair_is_the_logistic_loss_and_stays_finite_far_out(dtype):
    array, expected, _ = case("RM1_pair", dtype)
    ranks_BC = jnp.asarray([[1, 2]])

    def loss(scores_BC):
        return preference.ranking_loss(scores_BC, ranks_BC)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.stack([array("r_chosen"), array("r_rejected")])[None])
    close(value, expected["loss"], dtype)
    close(gradient[0], [expected["grad_chosen"], expected["grad_rejected"]], dtype)
    close(loss(jnp.asarray([[0.3, 0.3]], dtype)), expected["loss_at_equal_scores"], dtype)
    close(loss(jnp.asarray([[-1000.0, 0.0]], dtype)), expected["loss_at_diff_minus_1000"], dtype)


def test_rankings_average_within_a_prompt_and_drop_ties(dtype):
    _, expected, inputs = case("RM2_K_ranking_ties", dtype)
    scores_BC, ranks_BC = padded_ranking(inputs, dtype)

    def loss(scores_BC):
        total, prompts, aux = preference.ranking_loss(scores_BC, ranks_BC)
        return total / prompts, aux

    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(scores_BC)
    close(value, expected["loss"], dtype)
    far(value, expected["pooled_pair_mean_variant"])
    assert int(aux["pairs"]) == sum(expected["n_pairs"])
    close(aux["correct"] / aux["pairs"], expected["pair_accuracy"], dtype)
    for row, wanted in enumerate(expected["grad"]):
        close(gradient[row, : len(wanted)], wanted, dtype)
    close(gradient.sum(axis=1), [0.0, 0.0], dtype)


def test_rewards_are_minus_beta_k1_with_the_score_on_the_last_token(dtype):
    array, expected, inputs = case("PPO1_kl_shaped_reward", dtype)
    mask_BR = jnp.asarray(expected["action_mask"], bool)
    ended_B = jnp.asarray([True, False])
    config = PpoConfig(missing_end_penalty=inputs["missing_eos_penalty"])
    scores_B = finished_scores(array("score"), ended_B, config)
    close(scores_B, expected["score_after_penalty"], dtype)
    k1, k2, k3 = policy.kl_estimates(array("logp_old"), array("logp_ref"), mask_BR)
    close(k1, expected["k1"], dtype)
    close(k2, expected["k2"], dtype)
    close(k3, expected["k3"], dtype)
    close(k1.sum(axis=1), expected["sequence_kl_k1"], dtype)
    rewards_BR = returns.kl_shaped_rewards(
        scores_B, array("logp_old"), array("logp_ref"), mask_BR, kl_coefficient=inputs["beta"]
    )
    close(rewards_BR, expected["rewards_k1"], dtype)
    far(rewards_BR, expected["WRONG_rewards_if_int_buffer"])


def test_a_missing_end_can_get_a_fixed_score():
    config = PpoConfig(missing_end_score=-1.0)
    np.testing.assert_array_equal(
        finished_scores(jnp.asarray([0.9, 0.4]), jnp.asarray([True, False]), config), jnp.asarray([0.9, -1.0])
    )


def test_gae_restarts_at_the_last_valid_token(dtype):
    array, expected, inputs = case("PPO2_gae", dtype)
    mask_BR = jnp.asarray(inputs["action_mask"], bool)
    advantages_BR, returns_BR = returns.gae(array("rewards"), array("values"), mask_BR, discount=1.0, trace=0.95)
    close(advantages_BR, expected["advantages"], dtype)
    close(returns_BR, expected["returns"], dtype)
    far(advantages_BR, expected["WRONG_advantages_unmasked"])
    monte_carlo_BR, _ = returns.gae(array("rewards"), array("values"), mask_BR, discount=1.0, trace=1.0)
    close(monte_carlo_BR, expected["advantages_lambda_1"], dtype)


def test_whitening_uses_the_population_variance_over_the_mask(dtype):
    array, expected, inputs = case("PPO3_whiten", dtype)
    everything = jnp.ones((3, 3), bool)
    loose = "float32"  # the expected values carry the 1e-8 of the variance only to 1e-7
    close(
        returns.whitened(array("blog_input"), everything, shift_mean=False),
        expected["blog_keep_mean_population"],
        loose,
    )
    close(returns.whitened(array("blog_input"), everything), expected["blog_shift_mean_population"], loose)
    found = returns.whitened(array("advantages"), jnp.asarray(inputs["action_mask"], bool))
    close(found, expected["adv_whitened"], dtype)
    far(found, expected["WRONG_whitened_with_padding_counted"])
    far(found, expected["adv_whitened_sample_var"])


def test_the_policy_loss_is_pessimistic_and_masked(dtype):
    array, expected, inputs = case("PPO4_policy_loss", dtype)
    mask_BR = jnp.asarray(inputs["mask"], bool)

    def loss(logp_BR):
        clip = inputs["clip"]
        loss_BR, aux = policy.clipped_surrogate(
            logp_BR, array("logp_old"), array("advantages"), mask_BR, clip_low=clip, clip_high=clip
        )
        count = jnp.sum(mask_BR)
        return jnp.sum(loss_BR) / count, {name: value / count for name, value in aux.items()}

    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(array("logp_new"))
    close(value, expected["loss"], dtype)
    close(gradient, expected["grad_wrt_logp_new"], dtype)
    close(aux["clipped_low"] + aux["clipped_high"], expected["clipfrac"], dtype)
    close(aux["k2"], expected["approxkl_k2"], dtype)
    close(aux["k3"], expected["approxkl_k3"], dtype)
    far(aux["k2"], expected["WRONG_approxkl_unmasked"])


def test_the_kl_controller_moves_by_at_most_a_fifth_of_its_horizon(dtype):
    _, expected, inputs = case("PPO6_adaptive_kl", dtype)
    coefficient = jnp.asarray(inputs["init"], dtype)
    for (kl, episodes), wanted in zip(inputs["observations"], expected["beta_after_each"], strict=True):
        coefficient = policy.adapted_kl_coefficient(
            coefficient, jnp.asarray(kl, dtype), target=inputs["target"], horizon=inputs["horizon"], episodes=episodes
        )
        close(coefficient, wanted, dtype)


def test_k1_in_the_reward_has_the_gradient_of_the_reverse_kl(dtype):
    array, expected, _ = case("PPO9_kl_gradient_estimators", dtype)
    logits, ref = array("logits"), jnp.log(array("ref_probs"))

    def surrogate(logits):
        logp = jax.nn.log_softmax(logits)
        p = jax.lax.stop_gradient(jnp.exp(logp))
        k1, _, _ = policy.kl_estimates(jax.lax.stop_gradient(logp), ref, jnp.ones(3, bool))
        return jnp.sum(p * k1 * logp)

    np.testing.assert_allclose(
        jax.grad(surrogate)(logits), expected["grad_reverse_kl"], atol=2e-7 if dtype == "float64" else 2e-5
    )
