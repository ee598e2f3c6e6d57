"""What every step ends with: the optimizer's update and the next state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.types import Params, TrainState


def advance(state: TrainState, grads: Params, optimizer: optax.GradientTransformation, **extra: Any) -> TrainState:
    """The state after one update; `extra` replaces entries of state.extra."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        extra=state.extra | extra,
    )


def step_key(state: TrainState, microbatch: jax.Array | None = None) -> jax.Array:
    """A key for this step's randomness: the run's key folded with the step and, if it has several, the microbatch."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    return key if microbatch is None else jax.random.fold_in(key, microbatch)


def initial_state(params: Params, optimizer: optax.GradientTransformation, key: jax.Array, **extra: Any) -> TrainState:
    """The state before the first update; `key` is a typed PRNG key, `extra` the task's named arrays."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(key),
        frozen={},
        extra=extra,
    )
