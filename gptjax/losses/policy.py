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


def clipped_policy_loss(
    logp_BR: jax.Array, logp_old_BR: jax.Array, advantages_BR: jax.Array, mask_BR: jax.Array, *, clip: float
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """PPO's pessimistic clipped surrogate.

    Args:
        logp_BR: f32[B, R], log-probability under the policy in training (nats).
        logp_old_BR: f32[B, R], under the policy that sampled.
        advantages_BR: f32[B, R].
        mask_BR: bool[B, R].
        clip: the ratio is clipped to [1 - clip, 1 + clip].

    Returns:
        (loss_sum, n_tokens, aux); aux holds sums over the mask: clipped, k2, k3, ratio; and ratio_min, ratio_max over
        it (1 if it is empty).

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    log_ratio_BR = jnp.where(mask_BR, logp_BR - logp_old_BR, 0.0)
    ratio_BR = jnp.exp(log_ratio_BR)
    plain_BR = -advantages_BR * ratio_BR
    clipped_BR = -advantages_BR * jnp.clip(ratio_BR, 1.0 - clip, 1.0 + clip)
    _, k2_BR, k3_BR = kl_estimates(logp_old_BR, logp_BR, mask_BR)
    aux = {
        "clipped": masked_sum(clipped_BR > plain_BR, mask_BR),
        "k2": jnp.sum(k2_BR),
        "k3": jnp.sum(k3_BR),
        "ratio": masked_sum(ratio_BR, mask_BR),
        "ratio_min": jnp.where(jnp.any(mask_BR), jnp.min(jnp.where(mask_BR, ratio_BR, jnp.inf)), 1.0),
        "ratio_max": jnp.where(jnp.any(mask_BR), jnp.max(jnp.where(mask_BR, ratio_BR, 0.0)), 1.0),
    }
    return masked_sum(jnp.maximum(plain_BR, clipped_BR), mask_BR), jnp.sum(mask_BR), aux


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
