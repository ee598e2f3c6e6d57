"""Losses on ranked candidates of one prompt."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def ranking_loss(
    scores_BC: jax.Array,
    ranks_BC: jax.Array,
    margins_BCC: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
    center: float = 0.0,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Mean pairwise logistic loss of each prompt's ranking, summed over prompts.

    All pairs of one prompt whose ranks differ count, ties are dropped, and each prompt is divided by its own number of
    pairs, so a prompt with nine candidates weighs no more than one with four. A candidate whose score is not finite
    is left out and counted.

    Args:
        scores_BC: float[B, C], reward-model scores; computed with in at least float32.
        ranks_BC: i32[B, C], 1 = best, equal = tie, 0 = no candidate.
        margins_BCC: f32[B, C, C], score difference that candidate i owes to j where it is ranked above (None: 0).
        label_smoothing: probability in [0, .5) that the two candidates of a pair were mixed up.
        center: coefficient of the pair's squared sum of scores, which pulls scores towards mean 0.

    Returns:
        (loss_sum, n_prompts, aux): nats, summed over the prompts that have a pair; aux holds nll and center (sums over
        the same prompts of the plain loss and of the squared sums), pairs, correct (a tie in score is half right) and
        not_finite (candidates left out).

    Source: Ouyang et al. 2022, arXiv:2203.02155, equation 1 and appendix C.2; margins: Touvron et al. 2023,
    arXiv:2307.09288, equation 2; centring: Eisenstein et al. 2023, arXiv:2312.09244.
    """
    scores_BC, ranks_BC, not_finite = _scored(scores_BC, ranks_BC)
    better_BCC = pair_mask(ranks_BC)
    difference_BCC = scores_BC[:, :, None] - scores_BC[:, None, :]
    sum_BCC = scores_BC[:, :, None] + scores_BC[:, None, :]
    margin_BCC = 0.0 if margins_BCC is None else jnp.where(better_BCC, margins_BCC, 0.0)
    as_ranked_BCC = -jax.nn.log_sigmoid(difference_BCC - margin_BCC)
    mixed_up_BCC = -jax.nn.log_sigmoid(-difference_BCC - margin_BCC)
    loss_BCC = (1.0 - label_smoothing) * as_ranked_BCC + label_smoothing * mixed_up_BCC

    def total(pairs_BCC):
        """Sum over prompts of the mean over the prompt's pairs."""
        sum_B = jnp.sum(jnp.where(better_BCC, pairs_BCC, 0.0), axis=(1, 2))
        return jnp.sum(sum_B / jnp.maximum(jnp.sum(better_BCC, axis=(1, 2)), 1))

    n_prompts = jnp.sum(jnp.any(better_BCC, axis=(1, 2)))
    nll = total(-jax.nn.log_sigmoid(difference_BCC))
    aux = {"nll": nll, "center": total(jnp.square(sum_BCC)), "not_finite": not_finite}
    aux |= _right(difference_BCC, better_BCC)
    return total(loss_BCC + center * jnp.square(sum_BCC)), n_prompts, aux


def choice_loss(scores_BC: jax.Array, ranks_BC: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of choosing the best candidate among all of its prompt by the softmax of the scores.

    Which of several candidates tied for best would have been chosen is not known, so they count as one outcome; a
    prompt of nothing but ties has weight 0.

    Args:
        scores_BC: float[B, C], reward-model scores; computed with in at least float32.
        ranks_BC: i32[B, C], 1 = best, equal = tie, 0 = no candidate.

    Returns:
        (loss_sum, n_prompts, aux): nats, summed over the prompts in which the best beats another; aux as that of
        `ranking_loss`, whose nll is over pairs.

    Source: Ziegler et al. 2019, arXiv:1909.08593, equation 1.
    """
    scores_BC, ranks_BC, not_finite = _scored(scores_BC, ranks_BC)
    best_BC = ranks_BC == 1
    counted_B = jnp.any(best_BC, axis=1) & jnp.any(ranks_BC > 1, axis=1)
    lowest = jnp.finfo(scores_BC.dtype).min

    def log_sum(mask_BC):
        return jax.nn.logsumexp(jnp.where(mask_BC, scores_BC, lowest), axis=1)

    loss_B = jnp.where(counted_B, log_sum(ranks_BC > 0) - log_sum(best_BC), 0.0)
    _, _, aux = ranking_loss(scores_BC, ranks_BC)
    return jnp.sum(loss_B), jnp.sum(counted_B), aux | {"not_finite": not_finite}


def gap_margins(ranks_BC: jax.Array, table: Sequence[float]) -> jax.Array:
    """float[B, C, C], the margin of each pair by how far apart its ranks are.

    Args:
        ranks_BC: i32[B, C], dense ranks.
        table: margin of ranks that differ by 1, by 2, ...; the last one holds for all larger gaps.
    """
    gap_BCC = ranks_BC[:, None, :] - ranks_BC[:, :, None]
    margins_BCC = jnp.zeros_like(gap_BCC, float)
    for gap, margin in enumerate(table, 1):
        margins_BCC = jnp.where(gap_BCC >= gap, margin, margins_BCC)
    return margins_BCC


def pair_mask(ranks_BC: jax.Array) -> jax.Array:
    """bool[B, C, C], true where candidate i is ranked above candidate j and both exist."""
    present_BC = ranks_BC > 0
    both_BCC = present_BC[:, :, None] & present_BC[:, None, :]
    return both_BCC & (ranks_BC[:, :, None] < ranks_BC[:, None, :])


def _scored(scores_BC: jax.Array, ranks_BC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores in at least float32, ranks of 0 where a score is not finite, and how many those are."""
    usable_BC = (ranks_BC > 0) & jnp.isfinite(scores_BC)
    not_finite = jnp.sum((ranks_BC > 0) & ~usable_BC)
    wide_BC = scores_BC.astype(jnp.promote_types(scores_BC.dtype, jnp.float32))
    return jnp.where(usable_BC, wide_BC, 0.0), jnp.where(usable_BC, ranks_BC, 0), not_finite


def _right(difference_BCC: jax.Array, better_BCC: jax.Array) -> dict[str, jax.Array]:
    right_BCC = jnp.where(difference_BCC > 0, 1.0, jnp.where(difference_BCC == 0, 0.5, 0.0))
    return {"pairs": jnp.sum(better_BCC), "correct": jnp.sum(jnp.where(better_BCC, right_BCC, 0.0))}
