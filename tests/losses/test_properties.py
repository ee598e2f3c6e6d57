"""What must hold whatever the numbers are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.losses.cross_entropy import chunked_nll, nll_sums, token_logp, token_nll
from gptjax.losses.policy import clipped_value_loss
from gptjax.losses.preference import ranking_loss
from gptjax.losses.returns import gae, whitened

FEW = settings(max_examples=25, deadline=None)
# few shapes, as each is compiled anew
RANKS = st.sampled_from([2, 6]).flatmap(lambda n: st.lists(st.integers(1, 3), min_size=n, max_size=n))


def test_chunked_loss_equals_the_whole_in_value_and_gradient(x64):
    rng = np.random.default_rng(0)
    h_BTD, table_VD = jnp.asarray(rng.normal(size=(3, 12, 5))), jnp.asarray(rng.normal(size=(7, 5)))
    targets_BT, weights_BT = jnp.asarray(rng.integers(0, 7, (3, 12))), jnp.asarray(rng.integers(0, 2, (3, 12)) * 1.0)

    def loss(h_BTD, table_VD, chunks):
        sums = chunked_nll(
            lambda h: jnp.einsum("BTD,VD->BTV", h, table_VD), h_BTD, targets_BT, weights_BT, chunks=chunks
        )
        return sums.nll_sum + 0.01 * sums.z_sum, sums

    (whole, sums), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(h_BTD, table_VD, 1)
    (pieces, sums_4), gradients_4 = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(h_BTD, table_VD, 4)
    np.testing.assert_allclose(pieces, whole, rtol=1e-12)
    np.testing.assert_allclose(sums_4, sums, rtol=1e-12)
    for a, b in zip(gradients_4, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_chunks_that_do_not_divide_the_row_are_refused():
    with pytest.raises(ValueError, match="5 loss chunks do not divide a row of 12 positions"):
        chunked_nll(lambda h: h, jnp.zeros((1, 12, 3)), jnp.zeros((1, 12), int), jnp.ones((1, 12)), chunks=5)


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    nll_BT, _ = token_nll(jnp.zeros((1, 2, 8)), jnp.asarray([[3, 5]]))
    np.testing.assert_allclose(nll_BT, np.log(8), rtol=1e-6)


def test_the_order_of_rows_changes_nothing(x64):
    rng = np.random.default_rng(2)
    logits_BTV, order = jnp.asarray(rng.normal(size=(5, 3, 7))), np.array([3, 0, 4, 1, 2])
    targets_BT, weights_BT = jnp.asarray(rng.integers(0, 7, (5, 3))), jnp.asarray(rng.uniform(size=(5, 3)))
    permuted = nll_sums(logits_BTV[order], targets_BT[order], weights_BT[order])
    np.testing.assert_allclose(permuted, nll_sums(logits_BTV, targets_BT, weights_BT), rtol=1e-12)


def test_half_precision_logits_are_refused():
    with pytest.raises(ValueError, match="at least float32"):
        token_nll(jnp.zeros((1, 2, 8), jnp.bfloat16), jnp.zeros((1, 2), int))


def test_each_target_counts_by_its_weight():
    # two words with logits 0 and ln 3: probabilities 1/4 and 3/4
    logits_BTV = jnp.log(jnp.array([[[1.0, 3.0]] * 3]))
    sums = nll_sums(logits_BTV, jnp.array([[0, 1, 1]]), jnp.array([[0.5, 2.0, 0.0]]))
    np.testing.assert_allclose(sums.nll_sum, 0.5 * np.log(4) + 2.0 * np.log(4 / 3), rtol=1e-6)
    np.testing.assert_allclose(sums.correct_sum, 2.0)
    np.testing.assert_allclose(sums.weight_sum, 2.5)


def test_nan_where_nothing_counts_does_not_leak():
    logits_BTV = jnp.zeros((1, 3, 4)).at[0, 2].set(jnp.nan)
    sums = nll_sums(logits_BTV, jnp.zeros((1, 3), int), jnp.asarray([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(sums.nll_sum, 2 * np.log(4), rtol=1e-6)
    bad, mask = jnp.asarray([[0.1, jnp.nan]]), jnp.asarray([[True, False]])
    assert np.isfinite(clipped_value_loss(bad, bad, bad, mask, clip=0.2)[0])
    assert np.isfinite(whitened(bad, mask)).all()
    assert np.isfinite(gae(bad, bad, mask, discount=1.0, trace=0.95)[0]).all()


def test_entropy_and_log_probability_are_those_of_the_tempered_distribution():
    logits_BTV = jnp.asarray([[[1.0, 2.0, 4.0]]])
    p = np.exp(np.array([0.5, 1.0, 2.0]) - np.log(np.exp([0.5, 1.0, 2.0]).sum()))
    logp_BT, entropy_BT = token_logp(lambda h: h, logits_BTV, jnp.asarray([[1]]), 2.0)
    np.testing.assert_allclose(logp_BT, [[np.log(p[1])]], rtol=1e-6)
    np.testing.assert_allclose(entropy_BT, [[-(p * np.log(p)).sum()]], rtol=1e-6)


@FEW
@given(RANKS, st.floats(-5, 5), st.integers(0, 99))
def test_a_common_shift_of_the_scores_changes_no_ranking_loss(ranks, shift, seed):
    scores_BC = jnp.asarray(np.random.default_rng(seed).normal(size=(1, len(ranks))), jnp.float32)
    ranks_BC = jnp.asarray([ranks])
    loss, prompts, _ = ranking_loss(scores_BC, ranks_BC)
    shifted, _, _ = ranking_loss(scores_BC + shift, ranks_BC)
    np.testing.assert_allclose(shifted, loss, atol=1e-5)
    assert int(prompts) == (len(set(ranks)) > 1)


def test_absent_candidates_and_prompts_that_are_all_ties_weigh_nothing():
    scores_BC = jnp.asarray([[1.0, 0.0, 9.0], [1.0, 0.0, 5.0]])
    loss, prompts, aux = ranking_loss(scores_BC, jnp.asarray([[1, 2, 0], [1, 1, 1]]))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-1.0)), rtol=1e-6)
    assert (int(prompts), int(aux["pairs"])) == (1, 1)


@FEW
@given(st.sampled_from([1, 5]), st.sampled_from([0, 1, 4]), st.integers(0, 99))
def test_padding_changes_no_advantage(length, padding, seed):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, 1, length + padding)).astype(np.float32)
    mask = np.arange(length + padding)[None] < length
    padded, _ = gae(jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask), discount=0.9, trace=0.8)
    alone, _ = gae(
        jnp.asarray(rewards[:, :length]),
        jnp.asarray(values[:, :length]),
        jnp.ones((1, length), bool),
        discount=0.9,
        trace=0.8,
    )
    np.testing.assert_allclose(padded[:, :length], alone, atol=1e-5)
    assert not np.asarray(padded)[:, length:].any()


def test_coefficients_outside_the_unit_interval_are_refused():
    x, mask = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    with pytest.raises(ValueError, match=r"trace must lie in \[0, 1\], got 1.5"):
        gae(x, x, mask, discount=1.0, trace=1.5)


@FEW
@given(st.integers(2, 9), st.integers(0, 99))
def test_whitened_values_have_mean_zero_and_deviation_one_over_the_mask(count, seed):
    rng = np.random.default_rng(seed)
    x, mask = jnp.asarray(rng.normal(3, 2, size=(1, 12)), jnp.float32), jnp.arange(12)[None] < count
    found = np.asarray(whitened(x, mask))[0]
    np.testing.assert_allclose(found[:count].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(found[:count].std(), 1, atol=1e-4)
    assert not found[count:].any()
    np.testing.assert_allclose(whitened(x, mask, shift_mean=False)[0, :count].mean(), x[0, :count].mean(), atol=1e-4)
