"""Reinforcement learning without a critic: advantages within a group of answers to one prompt, and their losses."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from gptjax.losses.policy import kl_estimates, masked_sum

Aggregation: TypeAlias = Literal["sequence", "token", "constant"]
KlLoss: TypeAlias = Literal["k3_times_ratio", "k3_biased"]


def group_advantages(
    rewards_BC: jax.Array, scored_BC: jax.Array, *, scale: bool = True, ddof: int, eps: float
) -> tuple[jax.Array, jax.Array]:
    """Rewards minus the mean of their group, over its standard deviation (GRPO) or not (Dr. GRPO).

    Args:
        rewards_BC: f32[B, C], rewards of C answers to each of B prompts.
        scored_BC: bool[B, C]; what is not scored (NaN included) enters neither mean nor deviation.
        scale: divide by (standard deviation + eps).
        ddof: 0 for the population's deviation, 1 for the sample's.
        eps: added to the deviation (reward units).

    Returns:
        (advantages_BC, counted_BC): f32 and bool. Exactly 0 where all rewards of a group are equal. A sample counts if
        it is scored and not alone in its group; the others have advantage 0.

    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2; without scale: Liu et al. 2025, arXiv:2503.20783.
    """
    counted_BC, n_B1 = _counted(scored_BC)
    centred_BC = _centred(rewards_BC, counted_BC, n_B1)
    if not scale:
        return centred_BC, counted_BC
    variance_B1 = jnp.sum(jnp.square(centred_BC), axis=1, keepdims=True) / jnp.maximum(n_B1 - ddof, 1)
    return centred_BC / (jnp.sqrt(variance_B1) + eps), counted_BC


def leave_one_out_advantages(rewards_BC: jax.Array, scored_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each reward minus the mean of the others of its group: n / (n - 1) times (reward - mean), n the scored ones.

    Args:
        rewards_BC: f32[B, C], rewards of C answers to each of B prompts.
        scored_BC: bool[B, C]; what is not scored (NaN included) enters no baseline.

    Returns:
        (advantages_BC, counted_BC) as of `group_advantages`.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024,
    arXiv:2402.14740, section 3.3.
    """
    counted_BC, n_B1 = _counted(scored_BC)
    return _centred(rewards_BC, counted_BC, n_B1) * n_B1 / jnp.maximum(n_B1 - 1, 1), counted_BC


def constant_groups(rewards_BC: jax.Array, counted_BC: jax.Array) -> jax.Array:
    """bool[B], true where the counted rewards of a group are all equal: it has nothing to teach."""
    highest_B = jnp.max(jnp.where(counted_BC, rewards_BC, -jnp.inf), axis=1)
    lowest_B = jnp.min(jnp.where(counted_BC, rewards_BC, jnp.inf), axis=1)
    return jnp.any(counted_BC, axis=1) & (highest_B == lowest_B)


def _counted(scored_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
    n_B1 = jnp.sum(scored_BC, axis=1, keepdims=True)
    return scored_BC & (n_B1 > 1), n_B1


def _centred(rewards_BC: jax.Array, counted_BC: jax.Array, n_B1: jax.Array) -> jax.Array:
    """Reward minus the group's mean; 0 where nothing counts and, without rounding, where all rewards are equal."""
    known_BC = jnp.where(counted_BC, rewards_BC, 0.0)
    mean_B1 = jnp.sum(known_BC, axis=1, keepdims=True) / jnp.maximum(n_B1, 1)
    differ_B1 = ~constant_groups(rewards_BC, counted_BC)[:, None]
    return jnp.where(counted_BC & differ_B1, known_BC - mean_B1, 0.0)


def kl_token_loss(
    logp_BR: jax.Array, logp_old_BR: jax.Array, logp_ref_BR: jax.Array, mask_BR: jax.Array, *, kind: KlLoss
) -> jax.Array:
    """KL from the reference as a loss of each token (nats); zero where masked.

    k3_times_ratio: k3 times the differentiable ratio to the sampling policy; its gradient on one token is that of the
    reverse KL. k3_biased: k3 alone, as in DeepSeekMath; its gradient is that of the forward KL. Either leaves out what
    a token does to the KL of the tokens after it, which k1 in the reward does not. k1 as a loss is not offered: its
    gradient does not contain the reference.

    Raises:
        ValueError: `kind` is neither.

    Source: Shao et al. 2024, arXiv:2402.03300, equation 4; on the gradients: arXiv:2510.01555.
    """
    if kind not in ("k3_times_ratio", "k3_biased"):
        raise ValueError(f"kind must be k3_times_ratio or k3_biased, got {kind!r}")
    k3_BR = kl_estimates(logp_BR, logp_ref_BR, mask_BR)[2]
    if kind == "k3_biased":
        return k3_BR
    return jnp.exp(jnp.where(mask_BR, logp_BR - logp_old_BR, 0.0)) * k3_BR


def aggregated(
    loss_BR: jax.Array, mask_BR: jax.Array, how: Aggregation, *, longest: int
) -> tuple[jax.Array, jax.Array]:
    """(sum, count) of a loss of each token; their quotient is what is minimised.

    sequence: mean over an answer's tokens, then over answers; a token of a long answer weighs less (GRPO).
    token: mean over all tokens (DAPO).
    constant: sum over tokens, over answers times `longest`, so that a token's weight depends on no length (Dr. GRPO).

    Args:
        loss_BR: f32[B, R].
        mask_BR: bool[B, R]; an answer without a token is none.
        how: see above.
        longest: most tokens that an answer can have.
    """
    tokens_B = jnp.sum(mask_BR, axis=1)
    if how == "token":
        return masked_sum(loss_BR, mask_BR), jnp.sum(tokens_B)
    answers = jnp.sum(tokens_B > 0)
    if how == "constant":
        return masked_sum(loss_BR, mask_BR), answers * longest
    means_B = jnp.sum(jnp.where(mask_BR, loss_BR, 0.0), axis=1) / jnp.maximum(tokens_B, 1)
    return jnp.sum(means_B), answers
