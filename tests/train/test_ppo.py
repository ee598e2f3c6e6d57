"""PPO on a tiny Transformer: what holds of a rollout and of the updates on it before any number is known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.run.mesh import put
from gptjax.train.ppo import PpoConfig, initial_extra, ppo_step
from gptjax.train.rollout import collect
from gptjax.train.update import initial_state
from gptjax.types import PpoBatch, PromptBatch

SIZES = ModelConfig(vocab_size=16, layers=1, width=8, heads=2, max_length=16)
PPO = PpoConfig(minibatches=2, response_tokens=5, temperature=0.7, kl_coefficient=0.1, kl_target=1.0, kl_horizon=100.0)


@pytest.fixture
def ppo(one_device):
    """(first state, reference, rollout, step); the reference is the policy as it was before the first update."""
    policy, scalar, tx = language_model(SIZES), scalar_model(SIZES), optax.sgd(0.5)
    key = jax.random.key(0)
    params = {"policy": jax.jit(policy.init)(key), "value": jax.jit(scalar.init)(key)}
    state = initial_state(params, tx, key, **initial_extra(PPO, params["policy"]))
    frozen = {"reference": params["policy"], "reward": params["value"]}
    frozen |= {"reward_gain": jnp.float32(1.0), "reward_bias": jnp.float32(0.0)}
    tokens_BP = np.array([[0, 0, 7, 8], [3, 4, 5, 6], [0, 9, 2, 3], [4, 4, 4, 4]], np.int32)
    prompts = PromptBatch(tokens_BP=tokens_BP, lengths_B=np.array([2, 4, 3, 4], np.int32))

    @jax.jit
    def roll(state, frozen, batch):
        return collect(state, frozen, batch, key, policy=policy, scalar=scalar, config=PPO, end_id=1)

    rollout = roll(state, frozen, put(PpoBatch(prompts=prompts), one_device))
    step = jax.jit(lambda s, r: ppo_step(s, r, policy=policy, scalar=scalar, optimizer=tx, config=PPO))
    return state, frozen["reference"], rollout, step


def test_updates_start_at_ratio_one_and_leave_the_reference_alone(ppo):
    # the rollout and the first update compute the same log-probabilities: ratio e^0, k2 = k3 = 0, loss -mean(A) = 0
    state, reference, rollout, step = ppo
    kept = jax.tree.map(lambda x: np.array(x), reference)
    after, metrics = step(state, rollout)
    np.testing.assert_allclose([metrics["ppo/ratio_min"], metrics["ppo/ratio_max"]], 1.0, atol=1e-5)
    np.testing.assert_allclose([metrics["ppo/approx_kl_k2_nats"], metrics["ppo/approx_kl_k3_nats"]], 0.0, atol=1e-6)
    assert abs(metrics["ppo/policy_loss"]) < 1e-5
    assert metrics["optim/grad_norm_policy"] > 1e-4
    # the cache that sampled and the forward pass that trains say the same of the tokens
    assert 0.0 < metrics["ppo/sampler_gap_mean_nats"] <= metrics["ppo/sampler_gap_max_nats"] < 1e-5
    last, _ = step(after, rollout)
    chex.assert_trees_all_equal(reference, kept)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), last.params["policy"], reference)
    assert max(jax.tree.leaves(moved)) > 1e-5
    # one rollout is two updates: the coefficient stays after the first and moves after the second
    np.testing.assert_array_equal(after.extra["kl_coefficient"], state.extra["kl_coefficient"])
    # sequence KL 0 against a target of 1: 0.1 * (1 - 0.2 * 4 / 100)
    np.testing.assert_allclose(last.extra["kl_coefficient"], 0.1 * 0.992, rtol=1e-6)


def test_sampled_log_probabilities_are_finite_and_those_of_the_reference(ppo):
    # policy = reference, so k1 = 0 and the only reward is the score on the last token
    _, _, rollout, _ = ppo
    mask_BR, logp_BR = np.asarray(rollout.mask_BR), np.asarray(rollout.logp_old_BR)
    assert np.isfinite(logp_BR[mask_BR]).all()
    assert (logp_BR[mask_BR] < 0).all()
    np.testing.assert_array_equal(logp_BR, rollout.logp_ref_BR)
    np.testing.assert_allclose(np.asarray(rollout.rewards_BR).sum(axis=1), rollout.scores_B, rtol=1e-6)
