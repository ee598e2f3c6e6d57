"""Identities of the losses that test_properties.py leaves out."""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.losses.preference import ranking_loss
from gptjax.losses.returns import gae


def test_swapping_a_pair_adds_its_difference_and_turns_its_gradient_round(x64):
    # softplus(x) - softplus(-x) = x: wrong order minus right order is the difference, 1.5 - 0.2
    scores_BC = jnp.asarray([[1.5, 0.2]])

    def loss(scores_BC, ranks):
        return ranking_loss(scores_BC, jnp.asarray([ranks]))[0]

    np.testing.assert_allclose(loss(scores_BC, [2, 1]) - loss(scores_BC, [1, 2]), 1.3, rtol=1e-12)
    np.testing.assert_allclose(loss(scores_BC, [2, 1]), loss(-scores_BC, [1, 2]), rtol=1e-12)
    gradient_BC = jax.grad(loss)(scores_BC, [1, 2])
    np.testing.assert_allclose(gradient_BC[0, 0], -gradient_BC[0, 1], rtol=1e-12)


def test_a_difference_of_minus_1000_has_loss_1000_and_slope_1(x64):
    # -log sigmoid(-1000) = 1000, d/dx = -sigmoid(1000) = -1
    value, gradient_BC = jax.value_and_grad(lambda s: ranking_loss(s, jnp.asarray([[1, 2]]))[0])(
        jnp.asarray([[-1000.0, 0.0]])
    )
    np.testing.assert_allclose(value, 1000.0)
    np.testing.assert_allclose(gradient_BC, [[-1.0, 1.0]])


def test_without_discount_and_decay_the_advantage_is_what_follows_minus_the_value(x64):
    # A_r = (reward_r + ... + reward_last) - value_r, and the critic's target is the sum alone
    rng = np.random.default_rng(3)
    rewards_BR, values_BR = rng.normal(size=(2, 4, 7))
    mask_BR = np.arange(7)[None] < np.array([1, 4, 6, 7])[:, None]
    following_BR = np.cumsum((rewards_BR * mask_BR)[:, ::-1], axis=1)[:, ::-1]
    advantages_BR, returns_BR = gae(
        jnp.asarray(rewards_BR), jnp.asarray(values_BR), jnp.asarray(mask_BR), discount=1.0, trace=1.0
    )
    np.testing.assert_allclose(advantages_BR, np.where(mask_BR, following_BR - values_BR, 0), atol=1e-12)
    np.testing.assert_allclose(returns_BR, np.where(mask_BR, following_BR, 0), atol=1e-12)


def test_without_trace_the_advantage_is_the_error_of_one_step(x64):
    # r = (1, 2), V = (5, 7), discount 0.5: 1 + 0.5 * 7 - 5 = -0.5; 2 - 7 = -5
    advantages_BR, _ = gae(
        jnp.asarray([[1.0, 2.0]]), jnp.asarray([[5.0, 7.0]]), jnp.ones((1, 2), bool), discount=0.5, trace=0.0
    )
    np.testing.assert_allclose(advantages_BR, [[-0.5, -5.0]])
