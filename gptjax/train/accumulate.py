"""Gradient accumulation: the gradient of a batch from microbatches, in the memory of one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gptjax.types import Params

Share = Callable[[Params, Any, jax.Array | None], tuple[jax.Array, Any]]


def accumulated(share: Share, params: Params, batch: Any, microbatches: int) -> tuple[Params, Any]:
    """The gradient of a batch's loss, as the sum of its microbatches' gradients.

    A microbatch is every `microbatches`-th row, so each device keeps the rows that it has. Sums over rows must already
    be divided by counts of the whole batch (or nothing is, and the caller divides the result): then shares add up to
    the loss, whatever the counts of each microbatch are.

    Args:
        share: (params, rows, number) -> (what these rows add to the loss, aux); number is i32[], the microbatch's, or
            None if there is only one.
        params: differentiated with respect to these.
        batch: arrays whose first dimension is the row; scalars go to every microbatch.
        microbatches: how many; the rows of each device are a multiple.

    Returns:
        (gradient, aux with a new first dimension of length `microbatches`).
    """
    gradient = jax.grad(share, has_aux=True)
    if microbatches == 1:
        grads, aux = gradient(params, batch, None)
        return grads, jax.tree.map(lambda x: x[None], aux)
    pieces = jax.tree.map(partial(_cut, pieces=microbatches), batch)

    def add(total: Params, number: jax.Array) -> tuple[Params, Any]:
        def own(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(x, number, 1, keepdims=False) if jnp.ndim(x) else x

        grads, aux = gradient(params, jax.tree.map(own, pieces), number)
        return jax.tree.map(jnp.add, total, grads), aux

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), jnp.arange(microbatches))


def totals(aux: Any) -> Any:
    """What the microbatches counted, added up; the smallest or largest of what is named ..._min or ..._max."""

    def total(path: Any, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
        extreme = {"_min": jnp.min, "_max": jnp.max}.get(name[-4:], jnp.sum)
        return extreme(x, axis=0)

    return jax.tree_util.tree_map_with_path(total, aux)


def _cut(x: jax.Array, pieces: int) -> jax.Array:
    """[B, ...] -> [B / pieces, pieces, ...], B spread as it was: no row moves."""
    if not jnp.ndim(x):
        return x
    rows, *rest = jax.typeof(x).sharding.spec
    shape = (x.shape[0] // pieces, pieces, *x.shape[1:])
    return jnp.reshape(x, shape, out_sharding=PartitionSpec(rows, None, *rest))
