"""From scores to advantages: KL-shaped rewards, generalised advantage estimates, whitening."""

import jax
import jax.numpy as jnp


def kl_shaped_rewards(
    scores_B: jax.Array,
    logp_old_BR: jax.Array,
    logp_ref_BR: jax.Array,
    mask_BR: jax.Array,
    *,
    kl_coefficient: jax.Array | float,
) -> jax.Array:
    """Reward of each response token: minus the coefficient times k1, and the score on the last token.

    Args:
        scores_B: f32[B], score of the whole response (reward units).
        logp_old_BR: f32[B, R], log-probability under the policy that sampled (nats).
        logp_ref_BR: f32[B, R], under the reference (nats).
        mask_BR: bool[B, R], true up to and including the end-of-turn token.
        kl_coefficient: reward units per nat.

    Returns:
        f32[B, R], zero where masked.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2; Ouyang et al. 2022, equation 2.
    """
    log_ratio_BR = jnp.where(mask_BR, logp_old_BR - logp_ref_BR, 0.0)
    last_BR = mask_BR & (jnp.cumsum(mask_BR, axis=1) == jnp.sum(mask_BR, axis=1, keepdims=True))
    return -kl_coefficient * log_ratio_BR + jnp.where(last_BR, scores_B[:, None], 0.0)


def gae(
    rewards_BR: jax.Array, values_BR: jax.Array, mask_BR: jax.Array, *, discount: float, trace: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates over responses of different lengths.

    Args:
        rewards_BR: f32[B, R], reward earned by emitting token r (reward-model units).
        values_BR: f32[B, R], critic's estimate of the reward still to come before token r (same units).
        mask_BR: bool[B, R], true up to and including the end-of-sequence token.
        discount: per-token discount, in [0, 1].
        trace: per-token trace decay (the paper's lambda), in [0, 1].

    Returns:
        (advantages_BR, returns_BR), f32[B, R] in reward units, zero where masked. Not whitened.

    Raises:
        ValueError: shapes differ, or a coefficient lies outside [0, 1].

    Source: Schulman et al. 2016, arXiv:1506.02438, section 3.
    """
    if not rewards_BR.shape == values_BR.shape == mask_BR.shape:
        raise ValueError(f"shapes differ: rewards {rewards_BR.shape}, values {values_BR.shape}, mask {mask_BR.shape}")
    for name, coefficient in (("discount", discount), ("trace", trace)):
        if not 0.0 <= coefficient <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {coefficient}")

    def body(carry, token):
        next_value_B, next_advantage_B = carry
        reward_B, value_B, valid_B = token
        delta_B = reward_B + discount * next_value_B - value_B
        advantage_B = jnp.where(valid_B, delta_B + discount * trace * next_advantage_B, 0.0)
        return (jnp.where(valid_B, value_B, 0.0), advantage_B), advantage_B

    tokens = (rewards_BR.T, jnp.where(mask_BR, values_BR, 0.0).T, mask_BR.T)
    start = jnp.zeros_like(rewards_BR[:, 0])
    _, advantages_RB = jax.lax.scan(body, (start, start), tokens, reverse=True)
    advantages_BR = advantages_RB.T
    return advantages_BR, jnp.where(mask_BR, advantages_BR + values_BR, 0.0)


def whitened(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> jax.Array:
    """Values with standard deviation 1 (population) and mean 0 over the mask; masked entries become 0.

    Args:
        x: f32 array of any shape.
        mask: bool array of the same shape.
        shift_mean: False keeps the mean (for rewards).

    Source: "The N implementation details of RLHF with PPO"; variance epsilon 1e-8 as in lm-human-preferences.
    """
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(jnp.where(mask, x, 0.0)) / count
    centred = jnp.where(mask, x - mean, 0.0)
    scaled = centred * jax.lax.rsqrt(jnp.sum(jnp.square(centred)) / count + 1e-8)
    return scaled if shift_mean else jnp.where(mask, scaled + mean, 0.0)
