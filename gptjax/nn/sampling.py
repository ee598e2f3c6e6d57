"""One token from logits."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from gptjax import dims


def sample(
    logits_BV: jax.Array, key: jax.Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
    """A token for each row; the draw does not depend on how the array is spread over devices.

    Args:
        logits_BV: f32[B, V].
        key: PRNG key.
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.

    Returns:
        i32[B].
    """
    logits_BV = reshard(logits_BV, PartitionSpec(dims.BATCH_AXES, None))  # top-k and the draw look at the whole row
    if temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / temperature
    if top_k > 0:
        kth_B1 = jnp.sort(logits_BV, axis=-1)[:, -min(top_k, logits_BV.shape[-1])][:, None]
        logits_BV = jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf)
    if top_p < 1.0:
        logits_BV = jnp.where(logits_BV >= _nucleus_floor(logits_BV, top_p), logits_BV, -jnp.inf)
    return _drawn(logits_BV, key)


def _drawn(logits_BV: jax.Array, key: jax.Array, *, group: int = 64) -> jax.Array:
    """A token with its softmax probability, from one uniform number a row: first its group of tokens, then the token.

    The Gumbel trick needs V random numbers a row, which cost a CPU more than the model that made the logits.
    """
    batch, vocab = logits_BV.shape
    rest = -vocab % group
    mass_BV = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
    mass_BVV = jnp.pad(mass_BV, ((0, 0), (0, rest))).reshape(batch, -1, group)
    group_mass_BV = jnp.sum(mass_BVV, axis=2)
    through_BV = jnp.cumsum(group_mass_BV, axis=1)
    rows = PartitionSpec(dims.BATCH_AXES, None)
    uniform_B1 = jax.random.uniform(key, (batch, 1), logits_BV.dtype, out_sharding=rows)
    target_B1 = uniform_B1 * through_BV[:, -1:]
    passed_BV = through_BV <= target_B1
    chosen_B = jnp.sum(passed_BV, axis=1)
    is_chosen_BV = jnp.arange(through_BV.shape[1])[None] == chosen_B[:, None]
    inside_BV = jnp.sum(jnp.where(is_chosen_BV[:, :, None], mass_BVV, 0.0), axis=1)
    left_B1 = target_B1 - jnp.sum(jnp.where(passed_BV, group_mass_BV, 0.0), axis=1, keepdims=True)
    within_B = jnp.sum(jnp.cumsum(inside_BV, axis=1) <= left_B1, axis=1)
    last_B = jnp.max(jnp.where(inside_BV > 0, jnp.arange(group)[None], 0), axis=1)  # rounding must not pass it
    return (chosen_B * group + jnp.minimum(within_B, last_B)).astype(jnp.int32)


def _nucleus_floor(logits_BV: jax.Array, top_p: float) -> jax.Array:
    """Smallest logit [B, 1] that belongs to the nucleus: tokens until the mass before them reaches top_p."""
    descending_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
    p_BV = jax.nn.softmax(descending_BV, axis=-1)
    inside_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < top_p
    return jnp.min(jnp.where(inside_BV, descending_BV, jnp.inf), axis=-1, keepdims=True)
