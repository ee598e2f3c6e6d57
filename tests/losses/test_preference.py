"""The ranking and choice losses: worked cases, numbers by hand, properties, and a transcription in loops."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN, close
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.losses import preference

FEW = settings(max_examples=20, deadline=None)
ranking_loss, choice_loss = jax.jit(preference.ranking_loss), jax.jit(preference.choice_loss)
LOSSES = pytest.mark.parametrize("loss", [ranking_loss, choice_loss], ids=["ranking", "choice"])


def test_margins_and_centring_of_two_pairs(dtype):
    case = GOLDEN["RM5_margin_and_centering"]
    inputs, expected = case["inputs"], case["expected"]
    scores_BC = jnp.asarray([inputs["chosen"], inputs["rejected"]], dtype).T
    ranks_BC = jnp.asarray([[1, 2], [1, 2]])
    margins_BCC = jnp.zeros((2, 2, 2), dtype).at[:, 0, 1].set(jnp.asarray(inputs["margin"], dtype))

    def mean(*args, **options):
        total, prompts, aux = ranking_loss(scores_BC, ranks_BC, *args, **options)
        close(aux["nll"] / prompts, expected["plain"], dtype)  # the same whatever the options are
        return total / prompts

    close(mean(), expected["plain"], dtype)
    close(mean(margins_BCC), expected["with_margin"], dtype)
    close(mean(center=inputs["center_coef"]), expected["with_centering"], dtype)


def test_margins_follow_the_gap_between_ranks():
    # ranks 1, 2, 4 and none: gaps 1, 3 and 2; the table's last entry serves all gaps from 2 on
    found = preference.gap_margins(jnp.asarray([[1, 2, 4, 0]]), (1 / 3, 1.0))[0]
    np.testing.assert_allclose([found[0, 1], found[0, 2], found[1, 2], found[1, 0]], [1 / 3, 1, 1, 0], rtol=1e-6)


def test_a_margin_counts_only_where_the_ranks_agree_with_it(dtype):
    # the margin of (1, 0) belongs to the wrong order, that of (0, 2) to a candidate that is not there
    margins_BCC = jnp.zeros((1, 3, 3), dtype).at[0, 1, 0].set(5.0).at[0, 0, 2].set(jnp.nan)
    scores_BC, ranks_BC = jnp.asarray([[0.4, 0.1, 0.0]], dtype), jnp.asarray([[1, 2, 0]])
    close(ranking_loss(scores_BC, ranks_BC, margins_BCC)[0], math.log1p(math.exp(-0.3)), dtype)


def test_smoothed_labels_cost_the_expected_loss(dtype):
    # mixed up with probability .1: .9 softplus(-1) + .1 softplus(1); with margin .5: softplus of -.5 and of 1.5
    scores_BC, ranks_BC = jnp.asarray([[1.0, 0.0]], dtype), jnp.asarray([[1, 2]])

    def softplus(x):
        return math.log1p(math.exp(x))

    close(ranking_loss(scores_BC, ranks_BC, label_smoothing=0.1)[0], 0.9 * softplus(-1) + 0.1 * softplus(1), dtype)
    margins_BCC = jnp.full((1, 2, 2), 0.5, dtype)
    found = ranking_loss(scores_BC, ranks_BC, margins_BCC, label_smoothing=0.1)[0]
    close(found, 0.9 * softplus(-0.5) + 0.1 * softplus(1.5), dtype)


def test_the_loss_is_what_loops_over_pairs_give(x64):
    rng = np.random.default_rng(0)
    scores_BC, margins_BCC = rng.normal(size=(6, 5)), rng.uniform(0, 1, (6, 5, 5))
    ranks_BC = rng.integers(0, 4, (6, 5))
    expected, prompts, centers = 0.0, 0, 0.0
    for scores, ranks, margins in zip(scores_BC, ranks_BC, margins_BCC, strict=True):
        pairs = [(i, j) for i in range(5) for j in range(5) if 0 < ranks[i] < ranks[j]]
        prompts += bool(pairs)
        for i, j in pairs:
            d, m = scores[i] - scores[j], margins[i, j]
            center = (scores[i] + scores[j]) ** 2
            cost = 0.8 * np.logaddexp(0, m - d) + 0.2 * np.logaddexp(0, d + m) + 0.3 * center
            expected += cost / len(pairs)
            centers += center / len(pairs)
    found, count, aux = ranking_loss(
        *map(jnp.asarray, (scores_BC, ranks_BC, margins_BCC)), label_smoothing=0.2, center=0.3
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(aux["center"], centers, rtol=1e-12)
    assert int(count) == prompts > 3


def test_two_candidates_are_a_pair_for_both_losses(x64):
    scores_BC, ranks_BC = jnp.asarray([[0.3, -1.1]]), jnp.asarray([[2, 1]])
    for loss in (ranking_loss, choice_loss):
        value, gradient_BC = jax.value_and_grad(lambda s, loss=loss: loss(s, ranks_BC)[0])(scores_BC)
        np.testing.assert_allclose(value, math.log1p(math.exp(1.4)), rtol=1e-12)
        slope = 1 / (1 + math.exp(-1.4))
        np.testing.assert_allclose(gradient_BC, [[slope, -slope]], rtol=1e-12)


@LOSSES
def test_gradients_of_a_prompt_sum_to_zero(loss, x64):
    rng = np.random.default_rng(1)
    scores_BC, ranks_BC = jnp.asarray(rng.normal(size=(5, 7))), jnp.asarray(rng.integers(0, 5, (5, 7)))
    gradient_BC = jax.grad(lambda s: loss(s, ranks_BC)[0])(scores_BC)
    np.testing.assert_allclose(gradient_BC.sum(axis=1), np.zeros(5), atol=1e-14)
    assert np.abs(gradient_BC).max() > 0.01


def test_the_best_of_four_is_chosen_by_softmax(dtype):
    # weights 2, 1, 1, 1: the best has probability 2/5
    scores_BC = jnp.asarray([[0.0, math.log(2), 0.0, 0.0]], dtype)
    loss, prompts, _ = choice_loss(scores_BC, jnp.asarray([[2, 1, 3, 4]]))
    close(loss / prompts, math.log(2.5), dtype)
    # two tied for best of three that exist: (1 + 2) / 4
    close(choice_loss(scores_BC, jnp.asarray([[1, 1, 2, 0]]))[0], -math.log(3 / 4), dtype)


@LOSSES
def test_nothing_but_ties_has_weight_0_and_a_finite_gradient(loss):
    ranks_BC = jnp.asarray([[1, 1, 1], [0, 0, 0]])
    (total, count), gradient_BC = jax.value_and_grad(lambda s: loss(s, ranks_BC)[:2], has_aux=True)(
        jnp.asarray([[1.0, 2.0, 3.0], [1.0, jnp.nan, 3.0]])
    )
    assert (float(total), int(count)) == (0.0, 0)
    np.testing.assert_array_equal(gradient_BC, np.zeros((2, 3)))


@LOSSES
def test_a_score_that_is_not_finite_is_left_out_and_counted(loss):
    ranks_BC = jnp.asarray([[1, 3, 2], [1, 2, 0]])
    bad_BC = jnp.asarray([[0.5, 0.1, jnp.nan], [jnp.inf, 0.0, jnp.nan]])
    (value, aux), gradient_BC = jax.value_and_grad(lambda s: loss(s, ranks_BC)[::2], has_aux=True)(bad_BC)
    np.testing.assert_allclose(value, math.log1p(math.exp(-0.4)), rtol=1e-6)
    assert int(aux["not_finite"]) == 2
    assert np.isfinite(gradient_BC).all()


def test_scores_in_half_precision_are_compared_in_single():
    # 100 and 100.5 in bfloat16; their loss in bfloat16 would be off in the third digit
    value, _, _ = ranking_loss(jnp.asarray([[100.0, 100.5]], jnp.bfloat16), jnp.asarray([[1, 2]]))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, math.log1p(math.exp(0.5)), rtol=1e-6)


def ranked(seed, ranks):
    scores = np.random.default_rng(seed).normal(size=(1, 6)).astype(np.float32)
    padded = np.zeros((1, 6), np.int32)
    padded[0, : len(ranks)] = ranks
    return scores, padded


RANKS = st.lists(st.integers(1, 4), min_size=2, max_size=6)


@FEW
@given(RANKS, st.permutations(range(6)), st.integers(0, 99))
def test_the_order_of_candidates_changes_nothing(ranks, order, seed):
    scores_BC, ranks_BC = ranked(seed, ranks)
    expected, found = ranking_loss(scores_BC, ranks_BC), ranking_loss(scores_BC[:, order], ranks_BC[:, order])
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@FEW
@given(RANKS, st.lists(st.integers(1, 50), min_size=4, max_size=4, unique=True), st.integers(0, 99))
def test_other_numbers_for_the_same_order_change_nothing(ranks, names, seed):
    scores_BC, ranks_BC = ranked(seed, ranks)
    renamed_BC = np.concatenate([[0], np.sort(names)]).astype(np.int32)[ranks_BC]
    for a, b in zip(
        *(jax.tree.leaves(ranking_loss(scores_BC, chosen)) for chosen in (ranks_BC, renamed_BC)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@FEW
@given(RANKS, st.integers(0, 99))
def test_every_candidate_twice_is_the_same_loss(ranks, seed):
    # a copy is tied with its original, and every pair that counts appears four times
    scores_BC, ranks_BC = ranked(seed, ranks)
    once = ranking_loss(scores_BC, ranks_BC)
    twice = ranking_loss(np.tile(scores_BC, 2), np.tile(ranks_BC, 2))
    np.testing.assert_allclose(twice[0], once[0], rtol=1e-5, atol=1e-6)
    assert int(twice[2]["pairs"]) == 4 * int(once[2]["pairs"])
