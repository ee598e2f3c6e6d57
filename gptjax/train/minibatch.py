"""Which rows of a rollout an update has: in each epoch every row once, in a new order."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import reshard

from gptjax import dims
from gptjax.types import TrainState


class Updates(Protocol):
    """minibatches: of an epoch.  updates: those of all epochs of a rollout."""

    @property
    def minibatches(self) -> int: ...
    @property
    def updates(self) -> int: ...


def minibatch_rows(state: TrainState, config: Updates, prompts: int) -> tuple[jax.Array, jax.Array]:
    """(i32[prompts / minibatches], the rows of the next update; i32[], the number of the minibatch in its epoch).

    Both follow from the state's key and step, so that a resume makes the same updates.

    Args:
        state, config: of the step.
        prompts: rows of the rollout.

    Raises:
        ValueError: the minibatches do not divide the rollout.
    """
    if prompts % config.minibatches:
        raise ValueError(f"{config.minibatches} minibatches do not divide a rollout of {prompts} prompts")
    number = state.step % config.updates
    epoch, piece = number // config.minibatches, number % config.minibatches
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step // config.updates)
    # the small numbers are the tokens of the answers, which `collect` draws with the same key
    order_B = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 2**31 - 1), epoch), prompts)
    size = prompts // config.minibatches
    return jax.lax.dynamic_slice_in_dim(order_B, piece * size, size), piece


def taken(tree: Any, rows_B: jax.Array) -> Any:
    """These rows of every array, in the array's own layout; scalars as they are."""

    def take(x: jax.Array) -> jax.Array:
        if not jnp.ndim(x):
            return x
        own = x.at[rows_B].get(out_sharding=dims.act_spec("BCS"[: x.ndim]))
        return reshard(own, jax.typeof(x).sharding.spec)

    return jax.tree.map(take, tree)
