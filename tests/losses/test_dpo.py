"""Direct preference optimisation: the worked case, the kinds of loss, and what cannot matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import case, close, far
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.losses.cross_entropy import row_logp
from gptjax.losses.dpo import dpo_loss

FEW = settings(max_examples=10, deadline=None)


def golden(dtype):
    array, expected, inputs = case("DPO1", dtype)
    logp_BC = jnp.stack([array("logp_chosen"), array("logp_rejected")], axis=1)
    ref_BC = jnp.stack([array("ref_chosen"), array("ref_rejected")], axis=1)
    lengths_BC = jnp.stack([array("len_chosen"), array("len_rejected")], axis=1)
    return logp_BC, ref_BC, lengths_BC, expected, inputs


def test_the_worked_case_with_its_gradient(dtype):
    logp_BC, ref_BC, _, expected, inputs = golden(dtype)

    def loss(logp_BC):
        total, pairs, aux = dpo_loss(logp_BC, ref_BC, jnp.ones(2, bool), beta=inputs["beta"])
        return total / pairs, aux

    (value, aux), gradient_BC = jax.value_and_grad(loss, has_aux=True)(logp_BC)
    close(value, expected["loss"], dtype)
    far(value, expected["loss_at_initialisation"])
    close(gradient_BC[:, 0], expected["grad_logp_chosen"], dtype)
    close(gradient_BC[:, 1], expected["grad_logp_rejected"], dtype)
    close(aux["margin"], sum(expected["margin"]), dtype)
    close(aux["reward_chosen"], sum(expected["reward_chosen"]), dtype)
    close(aux["reward_rejected"], sum(expected["reward_rejected"]), dtype)
    close([aux["logp_chosen"], aux["logp_rejected"]], [-20.0, -19.5], dtype)
    assert (float(aux["correct"]), int(aux["ties"])) == (2 * expected["accuracy"], 0)
    for row, wanted in enumerate(expected["per_pair"]):
        close(dpo_loss(logp_BC, ref_BC, jnp.arange(2) == row, beta=inputs["beta"])[0], wanted, dtype)


@pytest.mark.parametrize(
    ("kind", "averaged", "name"),
    [
        ("sigmoid", False, "cdpo_loss"),
        ("robust", False, "robust_dpo_loss"),
        ("ipo", False, "ipo_loss_sum"),
        ("ipo", True, "ipo_loss_length_averaged"),
    ],
)
def test_the_kinds_of_the_worked_case(kind, averaged, name, dtype):
    logp_BC, ref_BC, lengths_BC, expected, inputs = golden(dtype)
    smoothing = 0.0 if kind == "ipo" else inputs["label_smoothing"]
    total, pairs, _ = dpo_loss(
        logp_BC,
        ref_BC,
        jnp.ones(2, bool),
        beta=inputs["beta"],
        kind=kind,
        label_smoothing=smoothing,
        lengths_BC=lengths_BC if averaged else None,
    )
    close(total / pairs, expected[name], dtype)
    for other in {"loss", "cdpo_loss", "robust_dpo_loss", "ipo_loss_sum", "ipo_loss_length_averaged"} - {name}:
        far(total / pairs, expected[other])


@FEW
@given(st.integers(0, 999), st.sampled_from(["sigmoid", "robust", "ipo"]), st.booleans())
def test_a_numpy_transcription_agrees(seed, kind, averaged):
    # softplus(-x) = -log sigmoid(x)
    rng = np.random.default_rng(seed)
    logp, ref = rng.normal(-20, 3, (2, 5, 2)).astype(np.float32)
    lengths, mask = rng.integers(1, 9, (5, 2)), rng.random(5) < 0.7
    beta, smoothing = 0.3, 0.0 if kind == "ipo" else 0.2
    expected = 0.0
    for i in np.flatnonzero(mask):
        ratios = (logp[i] - ref[i]) / (lengths[i] if averaged else 1)
        h = ratios[0] - ratios[1]
        right, wrong = np.logaddexp(0, -beta * h), np.logaddexp(0, beta * h)
        expected += {
            "sigmoid": 0.8 * right + 0.2 * wrong,
            "robust": (0.8 * right - 0.2 * wrong) / 0.6,
            "ipo": (h - 1 / 0.6) ** 2,
        }[kind]
    total, pairs, _ = dpo_loss(
        *map(jnp.asarray, (logp, ref, mask)),
        beta=beta,
        kind=kind,
        label_smoothing=smoothing,
        lengths_BC=jnp.asarray(lengths) if averaged else None,
    )
    assert int(pairs) == mask.sum()
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)


def test_before_the_first_update_every_pair_is_a_tie_that_costs_ln_2():
    # policy and reference differ by float32 rounding only (a relative 1e-7), so no margin is real
    ref_BC = jnp.asarray([[-31.7, -12.3], [-80.1, -79.9]], jnp.float32)
    for logp_BC in (ref_BC, ref_BC * (1 + 1e-7)):
        total, pairs, aux = dpo_loss(logp_BC, ref_BC, jnp.ones(2, bool), beta=0.1)
        np.testing.assert_allclose(total / pairs, np.log(2), rtol=1e-6)
        assert (int(aux["ties"]), float(aux["correct"])) == (2, 1.0)
    assert int(dpo_loss(ref_BC + jnp.asarray([[1e-3, 0.0]]), ref_BC, jnp.ones(2, bool), beta=0.1)[2]["ties"]) == 0


def test_a_pair_that_does_not_count_has_no_influence_not_even_as_nan():
    good, bad = jnp.asarray([[-1.0, -2.0]]), jnp.full((1, 2), jnp.nan)
    both_BC, mask_B = jnp.concatenate([good, bad]), jnp.asarray([True, False])

    def loss(logp_BC, mask_B):
        return dpo_loss(logp_BC, jnp.zeros_like(logp_BC), mask_B, beta=0.5)[0]

    np.testing.assert_array_equal(loss(both_BC, mask_B), loss(good, mask_B[:1]))
    np.testing.assert_array_equal(jax.grad(loss)(both_BC, mask_B)[1], [0.0, 0.0])
    total, pairs, _ = dpo_loss(bad, bad, jnp.zeros(1, bool), beta=0.5)
    assert (float(total), int(pairs)) == (0.0, 0)


def test_a_shift_of_policy_and_reference_and_swapped_labels(x64):
    # only the log-ratio enters; swapping turns h round: softplus(x) - softplus(-x) = x
    logp_BC, ref_BC = jnp.asarray([[-3.0, -9.0]]), jnp.asarray([[-5.0, -4.0]])
    h, mask_B = (-3.0 + 5.0) - (-9.0 + 4.0), jnp.ones(1, bool)
    loss = dpo_loss(logp_BC, ref_BC, mask_B, beta=0.2)[0]
    np.testing.assert_allclose(dpo_loss(logp_BC + 7.0, ref_BC + 7.0, mask_B, beta=0.2)[0], loss, rtol=1e-12)
    swapped = dpo_loss(logp_BC[:, ::-1], ref_BC[:, ::-1], mask_B, beta=0.2)[0]
    np.testing.assert_allclose(swapped - loss, 0.2 * h, rtol=1e-12)


def test_a_hopeless_pair_is_finite_and_still_has_a_slope(x64):
    value, gradient_BC = jax.value_and_grad(lambda x: dpo_loss(x, jnp.zeros((1, 2)), jnp.ones(1, bool), beta=1.0)[0])(
        jnp.asarray([[-1000.0, 0.0]])
    )
    np.testing.assert_allclose(value, 1000.0)
    np.testing.assert_allclose(gradient_BC, [[-1.0, 1.0]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beta": 0.0}, "dpo.beta must be positive, got 0.0"),
        ({"beta": 0.1, "label_smoothing": 0.5}, r"dpo.label_smoothing must lie in \[0, 0.5\), got 0.5"),
        ({"beta": 0.1, "kind": "ipo", "label_smoothing": 0.1}, "has no meaning for dpo.kind 'ipo'"),
        ({"beta": 0.1, "kind": "hinge"}, "must be sigmoid, robust or ipo, got 'hinge'"),
    ],
)
def test_settings_without_a_meaning_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dpo_loss(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.ones(1, bool), **wrong)


def test_a_row_is_worth_the_sum_of_its_masked_targets_in_any_number_of_pieces(x64):
    rng = np.random.default_rng(0)
    h_BTD, targets_BT = jnp.asarray(rng.normal(size=(3, 12, 5))), jnp.asarray(rng.integers(0, 5, (3, 12)))
    mask_BT = jnp.asarray(rng.random((3, 12)) < 0.5)
    logp = np.asarray(jax.nn.log_softmax(h_BTD))
    expected = [sum(logp[b, t, targets_BT[b, t]] for t in range(12) if mask_BT[b, t]) for b in range(3)]

    def total(h_BTD, chunks):
        return jnp.sum(row_logp(lambda h: h, h_BTD, targets_BT, mask_BT, chunks=chunks) ** 2)

    whole = jax.grad(total)(h_BTD, 1)
    for chunks in (1, 4):
        found = row_logp(lambda h: h, h_BTD, targets_BT, mask_BT, chunks=chunks)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(total)(h_BTD, chunks), whole, atol=1e-12)
    with pytest.raises(ValueError, match="5 loss chunks do not divide a row of 12 positions"):
        row_logp(lambda h: h, h_BTD, targets_BT, mask_BT, chunks=5)
