"""An optimizer's averages in bfloat16: half the bytes, rounded so that small changes are not lost."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.types import Params


class RoundedState(NamedTuple):
    """How many updates were made, and the inner state with its arrays of float32 in bfloat16."""

    step: jax.Array
    inner: Any


def rounded(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation with its averages kept in bfloat16 between updates, and computed in float32.

    They are rounded up or down at random, in proportion to how near either neighbour is. To the nearest, an average of
    squares with decay .999 would never move again: it changes by a thousandth, and bfloat16 keeps 8 bits. The random
    numbers follow from the number of updates alone, so that a resumed run draws the same.

    Source: Gupta et al. 2015, arXiv:1502.02551, section 3 (stochastic rounding).
    """

    def init(params: Params) -> RoundedState:
        small = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if _is_average(x) else x, inner.init(params))
        return RoundedState(step=jnp.zeros((), jnp.int32), inner=small)

    def update(updates: Params, state: RoundedState, params: Params | None = None) -> tuple[Params, RoundedState]:
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state.inner)
        updates, after = inner.update(updates, wide, params)
        leaves, structure = jax.tree.flatten(after)
        key = jax.random.fold_in(jax.random.key(0), state.step)
        kept = [
            stochastically_rounded(x, jax.random.fold_in(key, number)) if _is_average(x) else x
            for number, x in enumerate(leaves)
        ]
        return updates, RoundedState(step=state.step + 1, inner=jax.tree.unflatten(structure, kept))

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _is_average(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and x.ndim > 0


def stochastically_rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """x in bfloat16, up or down so that its expectation is x; what is not finite stays so.

    Args:
        x: float32 (wider is first rounded to it), any shape and layout.
        key: of the random numbers.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16, out_sharding=jax.typeof(x).sharding.spec).astype(jnp.uint32)
    # bfloat16 is the upper half of float32; a carry out of the lower half rounds away from zero
    upper = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), upper, x).astype(jnp.bfloat16)
