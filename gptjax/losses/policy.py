"""Clipped policy and value losses, KL estimators and the KL controller."""

import jax
import jax.numpy as jnp


def masked_sum(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum over the mask; what stands elsewhere (NaN included) has no influence."""
    return jnp.sum(jnp.where(mask, x, 0.0))


def kl_estimates(logp: jax.Array, logp_ref: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Per-token estimates (k1, k2, k3) of KL(p || ref) in nats from samples of p; zero where masked.

    k1 = log p/ref (unbiased, may be negative), k2 = k1^2 / 2 (biased), k3 = exp(-k1) - 1 + k1 (unbiased, at least 0).

    Source: Schulman 2020, "Approximating KL divergence".
    """
    k1 = jnp.where(mask, logp - logp_ref, 0.0)
    return k1, jnp.square(k1) / 2, jnp.expm1(-k1) + k1


def clipped_surrogate(
    logp: jax.Array, logp_old: jax.Array, advantages: jax.Array, mask: jax.Array, *, clip_low: float, clip_high: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of each token (or whole answer): the pessimistic surrogate, the ratio clipped to [1 - low, 1 + high].

    Args:
        logp: f32, log-probability under the policy in training (nats), of tokens [B, R] or of answers [B].
        logp_old: f32, under the policy that sampled.
        advantages: f32.
        mask: bool.
        clip_low: how far the ratio may fall before it stops counting for blamed tokens.
        clip_high: how far it may rise for praised ones (DAPO's clip-higher: above clip_low).

    Returns:
        (loss, aux): f32 like `logp`, zero where masked; aux holds sums over the mask: clipped_low, clipped_high,
        k2 and k3 (of the step from the old policy, nats), ratio; and ratio_min, ratio_max over it (1 if it is empty).

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7; two bounds: Yu et al. 2025, arXiv:2503.14476,
    section 3.1.
    """
    log_ratio = jnp.where(mask, logp - logp_old, 0.0)
    ratio, advantages = jnp.exp(log_ratio), jnp.where(mask, advantages, 0.0)
    loss = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high))
    _, k2, k3 = kl_estimates(logp_old, logp, mask)
    aux = {
        "clipped_low": masked_sum((ratio < 1.0 - clip_low) & (advantages < 0), mask),
        "clipped_high": masked_sum((ratio > 1.0 + clip_high) & (advantages > 0), mask),
        "k2": jnp.sum(k2),
        "k3": jnp.sum(k3),
        "ratio": masked_sum(ratio, mask),
        "ratio_min": jnp.where(jnp.any(mask), jnp.min(jnp.where(mask, ratio, jnp.inf)), 1.0),
        "ratio_max": jnp.where(jnp.any(mask), jnp.max(jnp.where(mask, ratio, 0.0)), 1.0),
    }
    return loss, aux


def clipped_value_loss(
    values_BR: jax.Array, values_old_BR: jax.Array, returns_BR: jax.Array, mask_BR: jax.Array, *, clip: float | None
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Half the squared error of the critic, the worse of the plain and the clipped prediction.

    Args:
        values_BR: f32[B, R], critic's predictions now (reward units).
        values_old_BR: f32[B, R], its predictions when the rollout was made.
        returns_BR: f32[B, R], targets.
        mask_BR: bool[B, R].
        clip: predictions are clipped to values_old +- clip; None: no clipping.

    Returns:
        (loss_sum, n_tokens, aux); aux holds the number of clipped tokens.

    Source: lm-human-preferences, train_policy; "The N implementation details of RLHF with PPO".
    """
    values_BR = jnp.where(mask_BR, values_BR, 0.0)  # before the square, whose gradient would turn 0 * NaN into NaN
    plain_BR = jnp.square(values_BR - returns_BR)
    if clip is None:
        return 0.5 * masked_sum(plain_BR, mask_BR), jnp.sum(mask_BR), {"clipped": jnp.zeros_like(plain_BR[0, 0])}
    near_BR = jnp.clip(values_BR, values_old_BR - clip, values_old_BR + clip)
    clipped_BR = jnp.square(near_BR - returns_BR)
    loss_sum = 0.5 * masked_sum(jnp.maximum(plain_BR, clipped_BR), mask_BR)
    return loss_sum, jnp.sum(mask_BR), {"clipped": masked_sum(clipped_BR > plain_BR, mask_BR)}


def adapted_kl_coefficient(
    coefficient: jax.Array, kl: jax.Array, *, target: float, horizon: float, episodes: int
) -> jax.Array:
    """The coefficient after one rollout of a controller that steers the sequence KL towards a target.

    Args:
        coefficient: f32[], the one in use (reward units per nat).
        kl: f32[], batch mean of the sequence KL (nats).
        target: nats.
        horizon: episodes over which the controller reacts.
        episodes: responses in the rollout.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * episodes / horizon)


def importance_weights(logp_BR: jax.Array, logp_sampler_BR: jax.Array, mask_BR: jax.Array, *, cap: float) -> jax.Array:
    """min(p_trained / p_sampled, cap) of each token: corrects a sampler whose numerics differ from training's.

    Args:
        logp_BR: f32[B, R], under the sampling policy by the forward pass that trains (nats).
        logp_sampler_BR: f32[B, R], by the sampler (nats).
        mask_BR: bool[B, R].
        cap: largest weight; truncation bounds the variance.

    Returns:
        f32[B, R], 1 where masked.

    Source: Ionides 2008, "Truncated importance sampling".
    """
    return jnp.minimum(jnp.exp(jnp.where(mask_BR, logp_BR - logp_sampler_BR, 0.0)), cap)
