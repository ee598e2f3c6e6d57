"""What every step ends with: the optimizer's update and the next state."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.memory import on_device
from gptjax.types import Metrics, Params, TrainState


def advance(
    state: TrainState,
    grads: Params,
    optimizer: optax.GradientTransformation,
    *,
    loss: jax.Array,
    wanted: jax.Array | bool = True,
    **extra: Any,
) -> tuple[TrainState, Metrics]:
    """The state after one update, and the update's figures; one that is not finite is not made.

    Where the loss or the gradient's norm is not finite, the state stays as it was, bit by bit, but for `step`, so that
    the next update has another batch, and extra["updates_skipped"], which counts them.

    Args:
        state: before the update.
        grads: shaped like state.params.
        optimizer: the update rule.
        loss: f32[], of which `grads` is the gradient.
        wanted: bool[]; where false, parameters and optimizer stay as they were, but `extra` counts.
        extra: new entries of state.extra.
    """
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    before = on_device(state.opt_state, after=norm)
    updates, opt_state = optimizer.update(grads, before, state.params)
    # chosen, not scaled: adding an update of zero would turn -0.0 into +0.0
    params, opt_state = chosen(
        finite & wanted, (optax.apply_updates(state.params, updates), opt_state), (state.params, before)
    )
    skipped = (~finite).astype(jnp.int32)
    extra = chosen(finite, state.extra | extra, state.extra)
    extra["updates_skipped"] = state.extra["updates_skipped"] + skipped
    metrics = {"optim/grad_norm": norm, "optim/updates_skipped": skipped}
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, extra=extra), metrics


def chosen(condition: jax.Array, new: Any, old: Any) -> Any:
    """The tree `new` where the condition (bool[]) holds, else `old`, bit by bit."""
    return jax.tree.map(partial(jnp.where, condition), new, old)


def step_key(state: TrainState, microbatch: jax.Array | None = None) -> jax.Array:
    """A key for this step's randomness: the run's key folded with the step and, if it has several, the microbatch."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    return key if microbatch is None else jax.random.fold_in(key, microbatch)


def initial_state(params: Params, optimizer: optax.GradientTransformation, key: jax.Array, **extra: Any) -> TrainState:
    """The state before the first update; `key` is a typed PRNG key, `extra` the task's named arrays.

    Every state counts skipped updates, and batches that a rollback made the run pass over (`data_offset`).
    """
    counters = {name: jnp.zeros((), jnp.int32) for name in ("updates_skipped", "data_offset")}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(key),
        frozen={},
        extra=counters | extra,
    )
