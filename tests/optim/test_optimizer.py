"""The optimizer of a run as a whole: two steps by hand, clipping over all parameters, and refused settings."""

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.optim.optimizer import OptimizerConfig, optimizer

ROLES, LETTERS = {"w": "matrix", "b": "bias"}, {"w": "DF", "b": "F"}


def test_two_steps_of_adamw_by_hand(x64):
    # rate 1 then .5 (linear over 2 steps), decay .1 of w = 2; the corrected moments of a constant gradient give
    # m / v ** .5 = 1, so w moves by -(1 + .2) and then half of that
    config = OptimizerConfig(peak_lr=1.0, schedule="linear", final_fraction=0.0, eps=1e-12, weight_decay=0.1)
    tx = optimizer(config, 2, ROLES, LETTERS)
    params = {"w": jnp.asarray([[2.0]]), "b": jnp.asarray([2.0])}
    state = tx.init(params)
    first, state = tx.update({"w": jnp.asarray([[0.6]]), "b": jnp.asarray([0.8])}, state, params)  # norm 1: not clipped
    np.testing.assert_allclose(first["w"], [[-1.0 - 0.2]], rtol=1e-9)
    np.testing.assert_allclose(first["b"], [-1.0], rtol=1e-9)
    second, _ = tx.update({"w": jnp.asarray([[1.8]]), "b": jnp.asarray([2.4])}, state, params)  # norm 3: clipped to 1
    # clipped to (.6, .8), the first step's gradients again; unclipped the moments would give more than 1
    np.testing.assert_allclose(second["w"], [[-0.5 * (1.0 + 0.2)]], rtol=1e-9)
    np.testing.assert_allclose(second["b"], [-0.5], rtol=1e-9)


def test_without_clipping_the_moments_see_the_gradient_itself(x64):
    # gradients 1 then 3: m = .39 / .19, v = .4975 / .0975; with clipping to 1 the second step would be -1
    config = OptimizerConfig(peak_lr=1.0, schedule="constant", eps=1e-12, clip_norm=None)
    tx = optimizer(config, 2, {"b": "bias"}, {"b": "F"})
    params = {"b": jnp.asarray([0.0])}
    _, state = tx.update({"b": jnp.asarray([1.0])}, tx.init(params), params)
    second, _ = tx.update({"b": jnp.asarray([3.0])}, state, params)
    np.testing.assert_allclose(second["b"], [-(0.39 / 0.19) / (0.4975 / 0.0975) ** 0.5], rtol=1e-9)


def test_two_steps_of_rmsprop_by_hand(x64):
    # smoothing .99 and gradients 1, then 3: v = .01, then .0099 + .09; no momentum and no bias correction
    config = OptimizerConfig(name="rmsprop", peak_lr=1.0, schedule="constant", b2=0.99, eps=0.1, clip_norm=None)
    tx = optimizer(config, 2, {"b": "bias"}, {"b": "F"})
    params = {"b": jnp.asarray([0.0])}
    first, state = tx.update({"b": jnp.asarray([1.0])}, tx.init(params), params)
    second, _ = tx.update({"b": jnp.asarray([3.0])}, state, params)
    np.testing.assert_allclose([first["b"][0], second["b"][0]], [-1.0 / (0.1 + 0.1), -3.0 / (0.0999**0.5 + 0.1)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"peak_lr": 0.0}, "optimizer.peak_lr must be positive, got 0.0"),
        ({"peak_lr": 1.0, "warmup_steps": -1}, "optimizer.warmup_steps must not be negative, got -1"),
        ({"peak_lr": 1.0, "b2": 1.5}, r"optimizer.b2 must lie in \[0, 1\), got 1.5"),
        ({"peak_lr": 1.0, "final_fraction": -0.1}, r"optimizer.final_fraction must lie in \[0, 1\], got -0.1"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**wrong)
