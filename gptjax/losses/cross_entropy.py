"""Next-token cross-entropy as sum and count; the vocabulary stays sharded and full logits need never exist."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class NllSums(NamedTuple):
    """Weighted sums over targets: nll_sum (nats), weight_sum, z_sum (nats squared), correct_sum (greedy hits)."""

    nll_sum: jax.Array
    weight_sum: jax.Array
    z_sum: jax.Array
    correct_sum: jax.Array


def token_nll(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of each target.

    Args:
        logits_BTV: f32[B, T, V] or wider; V may be sharded (targets are picked by a one-hot contraction).
        targets_BT: i32[B, T].

    Returns:
        (nll_BT, log_z_BT): nats; log_z is the log-sum-exp of the logits.
    """
    if logits_BTV.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"log-softmax needs at least float32 logits, got {logits_BTV.dtype}")
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    return log_z_BT - _target_logits(logits_BTV, targets_BT), log_z_BT


def _target_logits(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    vocabulary_11V = jnp.arange(logits_BTV.shape[-1], dtype=targets_BT.dtype)[None, None, :]
    return jnp.sum(jnp.where(vocabulary_11V == targets_BT[:, :, None], logits_BTV, 0.0), axis=-1)


def nll_sums(logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> NllSums:
    """Weighted sums of nll, z (squared log-sum-exp) and greedy hits, each target counted by its weight.

    Args:
        logits_BTV: f32[B, T, V].
        targets_BT: i32[B, T].
        weights_BT: f32[B, T]; where it is 0 nothing of the position enters, NaN included.
    """
    nll_BT, log_z_BT = token_nll(logits_BTV, targets_BT)
    hit_BT = _target_logits(logits_BTV, targets_BT) >= jnp.max(logits_BTV, axis=-1)
    counted_BT = weights_BT > 0

    def total(x_BT):
        return jnp.sum(jnp.where(counted_BT, weights_BT * x_BT, 0.0))

    return NllSums(total(nll_BT), jnp.sum(weights_BT), total(jnp.square(log_z_BT)), total(hit_BT))


def chunked_nll(
    unembed: Callable[[jax.Array], jax.Array],
    h_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    chunks: int = 1,
) -> NllSums:
    """`nll_sums` of unembed(h), computed chunk by chunk along T so that the full logits never exist.

    With more than one chunk the backward pass computes their logits again. A chunk is every `chunks`-th position,
    which leaves T spread over the `context` axis as it is.

    Args:
        unembed: h_BTD -> f32 logits_BTV.
        h_BTD: float[B, T, D].
        targets_BT: i32[B, T].
        weights_BT: f32[B, T].
        chunks: number of pieces; T must be a multiple.

    Raises:
        ValueError: T is not a multiple of `chunks`.
    """
    if h_BTD.shape[1] % chunks:
        raise ValueError(f"{chunks} loss chunks do not divide a row of {h_BTD.shape[1]} positions")
    if chunks == 1:
        return nll_sums(unembed(h_BTD), targets_BT, weights_BT)

    def split(x):
        return x.reshape(x.shape[0], x.shape[1] // chunks, chunks, *x.shape[2:])

    pieces = jax.tree.map(split, (h_BTD, targets_BT, weights_BT))

    @jax.checkpoint
    def body(sums, number):
        h, targets, weights = (jax.lax.dynamic_index_in_dim(x, number, 2, keepdims=False) for x in pieces)
        return jax.tree.map(jnp.add, sums, nll_sums(unembed(h), targets, weights)), None

    zero = jnp.zeros((), jnp.promote_types(h_BTD.dtype, jnp.float32))
    start = NllSums(zero, jnp.zeros((), weights_BT.dtype), zero, zero)
    sums, _ = jax.lax.scan(body, start, jnp.arange(chunks))
    return sums


def token_logp(unembed: Callable[[jax.Array], jax.Array], h_BTD: jax.Array, targets_BT: jax.Array, temperature: float):
    """Log-probability of each target and entropy of each distribution at the sampling temperature.

    Args:
        unembed: h_BTD -> f32 logits_BTV.
        h_BTD: float[B, T, D], hidden states before each target.
        targets_BT: i32[B, T].
        temperature: logits are divided by it, as when sampling.

    Returns:
        (logp_BT, entropy_BT), nats, at least float32.
    """
    logits_BTV = unembed(h_BTD) / temperature
    nll_BT, log_z_BT = token_nll(logits_BTV, targets_BT)
    p_BTV = jnp.exp(logits_BTV - log_z_BT[:, :, None])
    return -nll_BT, log_z_BT - jnp.sum(p_BTV * logits_BTV, axis=-1)


def row_logp(
    unembed: Callable[[jax.Array], jax.Array],
    h_BTD: jax.Array,
    targets_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    chunks: int = 1,
) -> jax.Array:
    """f32[B], log-probability of all masked targets of each row together (nats), in `chunks` pieces along T.

    Args:
        unembed: h_BTD -> f32 logits_BTV.
        h_BTD: float[B, T, D].
        targets_BT: i32[B, T].
        mask_BT: bool[B, T]; where it is false nothing of the position enters, NaN included.
        chunks: as in `chunked_nll`.

    Raises:
        ValueError: T is not a multiple of `chunks`.
    """
    if h_BTD.shape[1] % chunks:
        raise ValueError(f"{chunks} loss chunks do not divide a row of {h_BTD.shape[1]} positions")

    def logp_of(h_BTD, targets_BT, mask_BT):
        nll_BT, _ = token_nll(unembed(h_BTD), targets_BT)
        return -jnp.sum(jnp.where(mask_BT, nll_BT, 0.0), axis=1)

    if chunks == 1:
        return logp_of(h_BTD, targets_BT, mask_BT)

    def piece(x, number):
        split = x.reshape(x.shape[0], x.shape[1] // chunks, chunks, *x.shape[2:])
        return jax.lax.dynamic_index_in_dim(split, number, 2, keepdims=False)

    @jax.checkpoint
    def logp_of_piece(number):
        return logp_of(*(piece(x, number) for x in (h_BTD, targets_BT, mask_BT)))

    return jnp.sum(jax.lax.map(logp_of_piece, jnp.arange(chunks)), axis=0)
