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
    """A token with its softmax probability, by the Gumbel trick twice: for its group of tokens, then within the group.

    In one go the trick needs V random numbers a row, which cost a CPU more than the model that made the logits. One
    uniform number against cumulated probabilities needs fewer still, but has V edges that rounding moves: on another
    layout about one answer of a rollout came out different.
    """
    batch, vocab = logits_BV.shape
    groups = -(-vocab // group)
    padded_BV = jnp.pad(logits_BV, ((0, 0), (0, groups * group - vocab)), constant_values=-jnp.inf)
    logits_BGV = padded_BV.reshape(batch, groups, group)
    rows = PartitionSpec(dims.BATCH_AXES, None)
    noise_BN = jax.random.gumbel(key, (batch, groups + group), logits_BV.dtype, out_sharding=rows)
    chosen_B = jnp.argmax(jax.nn.logsumexp(logits_BGV, axis=2) + noise_BN[:, :groups], axis=1)
    is_chosen_BG = jnp.arange(groups)[None] == chosen_B[:, None]
    inside_BV = jnp.sum(jnp.where(is_chosen_BG[:, :, None], logits_BGV, 0.0), axis=1)
    within_B = jnp.argmax(inside_BV + noise_BN[:, groups:], axis=1)
    return (chosen_B * group + within_B).astype(jnp.int32)


def token_log_probability(logits_BV: jax.Array, token_B: jax.Array, *, temperature: float) -> jax.Array:
    """f32[B] (nats), log-probability of a token under the whole tempered distribution; temperature is positive."""
    logits_BV = reshard(logits_BV, PartitionSpec(dims.BATCH_AXES, None)) / temperature
    is_token_BV = jnp.arange(logits_BV.shape[-1])[None] == token_B[:, None]
    return jnp.sum(jnp.where(is_token_BV, logits_BV, 0.0), axis=-1) - jax.nn.logsumexp(logits_BV, axis=-1)


def _nucleus_floor(logits_BV: jax.Array, top_p: float) -> jax.Array:
    """Smallest logit [B, 1] that belongs to the nucleus: tokens until the mass before them reaches top_p."""
    descending_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
    p_BV = jax.nn.softmax(descending_BV, axis=-1)
    inside_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < top_p
    return jnp.min(jnp.where(inside_BV, descending_BV, jnp.inf), axis=-1, keepdims=True)
