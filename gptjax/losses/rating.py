"""Regression on scalar ratings, such as the 1 to 7 that a labeler gives to one response."""

import jax
import jax.numpy as jnp

MIDPOINT = 4.0  # of the scale from 1 to 7; what a head that starts at 0 predicts


def rating_loss(
    scores_BC: jax.Array, ratings_BC: jax.Array, weights_BC: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Weighted squared error of predicted ratings; a score is a rating minus the middle of the scale.

    Args:
        scores_BC: float[B, C], reward-model scores (rating points above the middle); at least float32 inside.
        ratings_BC: f32[B, C], given ratings, 1 to 7.
        weights_BC: f32[B, C], weight of each rating; 0 = not rated, or no such candidate.

    Returns:
        (loss_sum, weight_sum, aux): squared rating points, summed with their weights; aux holds absolute (weighted sum
        of the absolute error), rated (ratings that count) and not_finite (those left out as their score is not finite).

    Source: a rating of overall quality from 1 to 7: Ouyang et al. 2022, arXiv:2203.02155, table 3.
    """
    scores_BC = scores_BC.astype(jnp.promote_types(scores_BC.dtype, jnp.float32))
    rated_BC = weights_BC > 0
    usable_BC = rated_BC & jnp.isfinite(scores_BC)
    error_BC = jnp.where(usable_BC, scores_BC - (ratings_BC - MIDPOINT), 0.0)
    weights_BC = jnp.where(usable_BC, weights_BC, 0.0)
    aux = {
        "absolute": jnp.sum(weights_BC * jnp.abs(error_BC)),
        "rated": jnp.sum(usable_BC),
        "not_finite": jnp.sum(rated_BC & ~usable_BC),
    }
    return jnp.sum(weights_BC * jnp.square(error_BC)), jnp.sum(weights_BC), aux
