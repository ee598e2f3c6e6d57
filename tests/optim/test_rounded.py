"""Averages in bfloat16: unbiased rounding, nothing stuck, the same numbers again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.optim.rounded import rounded, stochastically_rounded


@pytest.mark.parametrize("value", [1.001, -1.001, 3.14159, 1e-20, -7.7e8])
def test_rounding_is_to_a_neighbour_and_right_on_average(value, one_device):
    x = jnp.full((200_000,), value, jnp.float32)
    drawn = np.asarray(jax.jit(stochastically_rounded)(x, jax.random.key(0)).astype(jnp.float32), np.float64)
    low, high = np.unique(drawn)  # just two
    assert low < np.float64(np.float32(value)) < high
    assert (high - low) / abs(value) < 2**-6
    standard_error = (high - low) / 2 / len(drawn) ** 0.5
    assert abs(drawn.mean() - value) < 4 * standard_error


def test_what_bfloat16_can_say_or_is_not_finite_stays(one_device):
    x = jnp.asarray([0.0, -0.0, 1.5, -2.0, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    got = stochastically_rounded(x, jax.random.key(1)).astype(jnp.float32)
    np.testing.assert_array_equal(got, x)
    np.testing.assert_array_equal(jnp.signbit(got[:2]), [False, True])


def test_an_average_of_squares_still_moves(one_device):
    # from 1 towards 4 with decay .999: to the nearest, 1 + .003 is 1 in bfloat16, and so on for ever
    tx = rounded(optax.scale_by_rms(decay=0.999, initial_scale=1.0))
    params = jnp.zeros((4096,), jnp.float32)
    state = tx.init(params)
    step = jax.jit(lambda state: tx.update(jnp.full_like(params, 2.0), state)[1])
    for _ in range(500):
        state = step(state)
    average = np.asarray(state.inner.nu, np.float32)
    assert state.inner.nu.dtype == jnp.bfloat16
    assert average.mean() == pytest.approx(4 - 3 * 0.999**500, rel=0.003)


@pytest.mark.parametrize("name", ["adamw", "muon", "rmsprop"])
def test_every_rule_keeps_half_the_bytes_and_nearly_its_updates(one_device, name):
    roles, letters = {"w": "matrix", "b": "bias"}, {"w": "LDF", "b": "LF"}
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"w": jax.random.normal(keys[0], (2, 16, 24)), "b": jax.random.normal(keys[1], (2, 24))}
    ends, sizes = [], []
    for dtype in ("float32", "bfloat16"):
        config = OptimizerConfig(name=name, peak_lr=1e-2, schedule="constant", moment_dtype=dtype)
        tx = optimizer(config, 10, roles, letters)
        state, after = tx.init(params), params
        for number in range(10):
            grads = jax.tree.map(lambda x, n=number: x * (1 + 0.1 * n), params)
            updates, state = tx.update(grads, state, after)
            after = optax.apply_updates(after, updates)
        ends.append(after)
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim))
    assert sizes[1] * 2 == sizes[0]
    for before, full, half in zip(*map(jax.tree.leaves, (params, *ends)), strict=True):
        moved = np.abs(full - before).max()
        assert 0 < np.abs(half - full).max() < 0.03 * moved


def test_the_same_update_rounds_alike_and_the_next_one_otherwise(one_device):
    tx = rounded(optax.trace(0.9))
    params = jnp.linspace(0.1, 0.2, 512)
    state = tx.init(params)
    once, again = (tx.update(params, state)[1] for _ in range(2))
    np.testing.assert_array_equal(once.inner.trace, again.inner.trace)
    other = tx.update(params, state._replace(step=state.step + 1))[1]
    assert (np.asarray(once.inner.trace, np.float32) != np.asarray(other.inner.trace, np.float32)).any()
