"""Losses on ranked candidates of one prompt."""

import jax
import jax.numpy as jnp


def ranking_loss(scores_BC: jax.Array, ranks_BC: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Mean pairwise logistic loss of each prompt's ranking, summed over prompts.

    All pairs of one prompt whose ranks differ count, ties are dropped, and each prompt is divided by its own number of
    pairs, so a prompt with nine candidates weighs no more than one with four.

    Args:
        scores_BC: f32[B, C], reward-model scores.
        ranks_BC: i32[B, C], 1 = best, equal = tie, 0 = no candidate.

    Returns:
        (loss_sum, n_prompts, aux): nats, summed over the prompts that have a pair; aux holds pairs and correct (a tie
        in score is half right), counts over all pairs.

    Source: Ouyang et al. 2022, arXiv:2203.02155, equation 1 and appendix C.2.
    """
    better_BCC = pair_mask(ranks_BC)
    difference_BCC = scores_BC[:, :, None] - scores_BC[:, None, :]
    loss_BCC = jnp.where(better_BCC, -jax.nn.log_sigmoid(jnp.where(better_BCC, difference_BCC, 0.0)), 0.0)
    n_pairs_B = jnp.sum(better_BCC, axis=(1, 2))
    loss_B = jnp.sum(loss_BCC, axis=(1, 2)) / jnp.maximum(n_pairs_B, 1)
    right_BCC = jnp.where(difference_BCC > 0, 1.0, jnp.where(difference_BCC == 0, 0.5, 0.0))
    aux = {"pairs": jnp.sum(n_pairs_B), "correct": jnp.sum(jnp.where(better_BCC, right_BCC, 0.0))}
    return jnp.sum(loss_B), jnp.sum(n_pairs_B > 0), aux


def pair_mask(ranks_BC: jax.Array) -> jax.Array:
    """bool[B, C, C], true where candidate i is ranked above candidate j and both exist."""
    present_BC = ranks_BC > 0
    both_BCC = present_BC[:, :, None] & present_BC[:, None, :]
    return both_BCC & (ranks_BC[:, :, None] < ranks_BC[:, None, :])
