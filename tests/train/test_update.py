"""An update that is not finite is not made: the state keeps its bits, whatever the fault and whatever the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.train.update import advance, initial_state

ADAM = optax.adam(0.1)
NAN, INF = float("nan"), float("inf")


def first_state():
    # -0.0 tells a state that was kept from one to which zero was added
    params = {"a": jnp.array([1.0, -0.0, 3.0]), "b": jnp.array([[2.0]])}
    return initial_state(params, ADAM, jax.random.key(0), kl=jnp.float32(0.5))


@jax.jit
def update(state, grads, loss):
    return advance(state, grads, ADAM, loss=loss, kl=state.extra["kl"] * 2)


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


GRADS = {"a": jnp.array([0.1, 0.2, 0.3]), "b": jnp.array([[0.4]])}


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e30], ids=str)
@pytest.mark.parametrize("where", ["a", "b", "loss"])
@pytest.mark.parametrize("before", [0, 3])
def test_a_bad_number_anywhere_leaves_every_bit_as_it_was(bad, where, before):
    if where == "loss" and bad == 1e30:
        bad = INF  # a loss of 1e30 with an ordinary gradient is a spike, which the driver watches for
    state = first_state()
    for _ in range(before):
        state, _ = update(state, GRADS, jnp.float32(1.0))
    grads = GRADS if where == "loss" else GRADS | {where: GRADS[where].at[..., 0].set(bad)}
    after, metrics = update(state, grads, jnp.float32(bad if where == "loss" else 1.0))
    kept = ("params", "opt_state", "key", "frozen")
    assert bits([getattr(after, name) for name in kept]) == bits([getattr(state, name) for name in kept])
    assert float(after.extra["kl"]) == float(state.extra["kl"])
    assert (int(after.step), int(after.extra["updates_skipped"])) == (before + 1, 1)
    assert int(metrics["optim/updates_skipped"]) == 1
    # the next good update is the one that would have been made without the fault
    resumed, metrics = update(after, GRADS, jnp.float32(1.0))
    clean, _ = update(state, GRADS, jnp.float32(1.0))
    assert bits((resumed.params, resumed.opt_state)) == bits((clean.params, clean.opt_state))
    assert (int(metrics["optim/updates_skipped"]), int(resumed.extra["updates_skipped"])) == (0, 1)


def test_a_large_but_finite_gradient_is_used():
    after, metrics = update(first_state(), GRADS | {"b": jnp.array([[1e15]])}, jnp.float32(1e15))
    assert int(metrics["optim/updates_skipped"]) == 0
    assert float(after.params["b"][0, 0]) == pytest.approx(1.9)  # Adam's first step is one learning rate
