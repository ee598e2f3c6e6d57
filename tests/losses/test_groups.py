"""Advantages within a group and the losses made of them: worked cases, identities, what cannot matter."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN, case, close, far
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.eval.best_of_n import best_of_n
from gptjax.losses.groups import (
    aggregated,
    constant_groups,
    group_advantages,
    kl_token_loss,
    leave_one_out_advantages,
)
from gptjax.losses.policy import clipped_surrogate

FEW = settings(max_examples=10, deadline=None)
ALL = {"scale": True, "ddof": 1, "eps": 1e-4}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("ddof0_eps1e6", {"ddof": 0, "eps": 1e-6}),
        ("ddof1_eps1e4", {"ddof": 1, "eps": 1e-4}),
        ("dr_grpo", {"scale": False, "ddof": 1, "eps": 1e-4}),
    ],
)
def test_the_worked_advantages(name, how, dtype):
    array, expected, _ = case("GRPO1_advantage", dtype)
    rewards_BC = array("rewards")
    found_BC, counted_BC = group_advantages(rewards_BC, jnp.ones((3, 4), bool), **how)
    close(found_BC, expected[name], dtype)
    for other in {"ddof0_eps1e6", "ddof1_eps1e4", "dr_grpo"} - {name}:
        far(found_BC, expected[other])
    assert bool(counted_BC.all())
    np.testing.assert_array_equal(found_BC[1], np.zeros(4))  # exactly
    assert constant_groups(rewards_BC, counted_BC).tolist() == [False, True, False]
    assert expected["frac_zero_std_groups"] == 1 / 3


def test_equal_rewards_have_exactly_no_advantage_whatever_their_mean_rounds_to():
    # the float32 mean of seven equal numbers is not always that number
    rewards_BC = jnp.repeat(jnp.asarray(np.random.default_rng(0).normal(size=(50, 1)), jnp.float32), 7, axis=1)
    every = jnp.ones((50, 7), bool)
    assert np.any(rewards_BC - jnp.mean(rewards_BC, axis=1, keepdims=True))
    np.testing.assert_array_equal(group_advantages(rewards_BC, every, ddof=0, eps=1e-9)[0], np.zeros((50, 7)))
    np.testing.assert_array_equal(leave_one_out_advantages(rewards_BC, every)[0], np.zeros((50, 7)))


def test_leaving_one_out_by_hand(dtype):
    # scores 1, 0, 2, 1 and KL 1, 0, 3, 0 nats at .05: rewards .95, 0, 1.85, 1; the others' means are
    # 2.85 / 3 = .95, 3.8 / 3, 1.95 / 3 = .65, 2.8 / 3
    rewards_BC = jnp.asarray([[1, 0, 2, 1]], dtype) - 0.05 * jnp.asarray([[1, 0, 3, 0]], dtype)
    found_BC, _ = leave_one_out_advantages(rewards_BC, jnp.ones((1, 4), bool))
    close(found_BC, [[0.0, -3.8 / 3, 1.2, 0.2 / 3]], dtype)
    far(found_BC, rewards_BC - rewards_BC.mean())


@FEW
@given(st.sampled_from([2, 5]), st.integers(0, 999))
def test_leaving_one_out_is_the_others_mean_and_a_multiple_of_the_distance_from_the_groups(size, seed):
    r = np.random.default_rng(seed).normal(size=(20, size)).astype(np.float32)
    by_others = np.stack([r[:, i] - np.delete(r, i, axis=1).mean(1) for i in range(size)], axis=1)
    found_BC, _ = leave_one_out_advantages(jnp.asarray(r), jnp.ones(r.shape, bool))
    np.testing.assert_allclose(found_BC, by_others, atol=1e-5)
    np.testing.assert_allclose(found_BC, size / (size - 1) * (r - r.mean(1, keepdims=True)), atol=1e-5)


@FEW
@given(st.floats(0.5, 4.0), st.floats(-50, 50), st.integers(0, 999))
def test_shifting_and_scaling_all_rewards_changes_no_group_advantage(factor, shift, seed):
    with jax.enable_x64(True):
        r_BC, every = np.random.default_rng(seed).normal(size=(4, 5)), jnp.ones((4, 5), bool)
        for scale, grows in ((True, 1.0), (False, factor)):  # Dr. GRPO's grow with the rewards
            how = {"scale": scale, "ddof": 0, "eps": 1e-12}
            plain, _ = group_advantages(jnp.asarray(r_BC), every, **how)
            moved, _ = group_advantages(jnp.asarray(factor * r_BC + shift), every, **how)
            np.testing.assert_allclose(moved, grows * np.asarray(plain), atol=1e-6)


@pytest.mark.parametrize("advantages", [lambda *x: group_advantages(*x, **ALL), leave_one_out_advantages])
def test_an_unscored_sample_is_out_of_baseline_and_loss(advantages):
    # the group without its NaN; a sample that is alone then has nothing to be compared with
    nan = jnp.nan
    rewards_BC = jnp.asarray([[1.0, nan, 4.0], [5.0, nan, nan], [nan, nan, nan]])
    found_BC, counted_BC = advantages(rewards_BC, jnp.isfinite(rewards_BC))
    alone, _ = advantages(jnp.asarray([[1.0, 4.0]]), jnp.ones((1, 2), bool))
    np.testing.assert_allclose(found_BC[0], [alone[0, 0], 0.0, alone[0, 1]], rtol=1e-6)
    np.testing.assert_array_equal(found_BC[1:], np.zeros((2, 3)))
    assert counted_BC.tolist() == [[True, False, True], [False] * 3, [False] * 3]


def test_a_transcription_of_the_three_advantages(x64):
    rng = np.random.default_rng(1)
    r, scored = rng.normal(size=(6, 5)), rng.random((6, 5)) < 0.8
    grpo, rloo = np.zeros_like(r), np.zeros_like(r)
    for b in range(6):
        known = r[b][scored[b]]
        if len(known) > 1:
            for c in np.flatnonzero(scored[b]):
                grpo[b, c] = (r[b, c] - known.mean()) / (known.std(ddof=1) + 1e-4)
                rloo[b, c] = r[b, c] - (known.sum() - r[b, c]) / (len(known) - 1)
    np.testing.assert_allclose(group_advantages(jnp.asarray(r), jnp.asarray(scored), **ALL)[0], grpo, atol=1e-12)
    np.testing.assert_allclose(leave_one_out_advantages(jnp.asarray(r), jnp.asarray(scored))[0], rloo, atol=1e-12)


LOSS_BR = jnp.asarray([[1.0, 2.0, 3.0, 6.0], [5.0, jnp.nan, jnp.nan, jnp.nan], [jnp.nan] * 4])
MASK_BR = jnp.asarray([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)


@pytest.mark.parametrize(
    ("how", "total", "count"),
    # sequences: means 3 and 5 of two answers; tokens: 17 over 5; constant: 17 over two answers of at most 8
    [("sequence", 8.0, 2), ("token", 17.0, 5), ("constant", 17.0, 16)],
)
def test_three_ways_to_average_tokens(how, total, count):
    found, n = aggregated(LOSS_BR, MASK_BR, how, longest=8)
    assert (float(found), int(n)) == (total, count)
    gradient_BR = jax.grad(lambda x: aggregated(x, MASK_BR, how, longest=8)[0])(LOSS_BR)
    assert np.isfinite(gradient_BR).all()
    nothing, n = aggregated(LOSS_BR, jnp.zeros_like(MASK_BR), how, longest=8)
    assert (float(nothing), int(n)) == (0.0, 0)


def test_each_bound_of_the_ratio_stops_its_own_direction(x64):
    # advantages +1: ratio 1.4 counts as 1.28, 1.25 and .5 as they are; advantages -1: .5 counts as .8, 1.4 as it is
    ratio = jnp.asarray([[1.4, 1.25, 0.5, 0.5, 1.4]])
    advantages = jnp.asarray([[1.0, 1.0, 1.0, -1.0, -1.0]])
    every, old = jnp.ones((1, 5), bool), jnp.full((1, 5), -2.0)

    def loss(logp, clip_high):
        values, aux = clipped_surrogate(logp, old, advantages, every, clip_low=0.2, clip_high=clip_high)
        return jnp.sum(values), (values, aux)

    gradient, (values, aux) = jax.grad(loss, has_aux=True)(old + jnp.log(ratio), 0.28)
    np.testing.assert_allclose(values, [[-1.28, -1.25, -0.5, 0.8, 1.4]], rtol=1e-12)
    np.testing.assert_allclose(gradient, [[0.0, -1.25, -0.5, 0.0, 1.4]], atol=1e-12)
    assert [int(aux[name]) for name in ("clipped_low", "clipped_high")] == [1, 1]
    np.testing.assert_allclose([aux["ratio_min"], aux["ratio_max"]], [0.5, 1.4], rtol=1e-12)
    gradient, (values, aux) = jax.grad(loss, has_aux=True)(old + jnp.log(ratio), 0.2)
    np.testing.assert_allclose(values, [[-1.2, -1.2, -0.5, 0.8, 1.4]], rtol=1e-12)
    assert int(aux["clipped_high"]) == 2


def test_nan_outside_the_mask_reaches_neither_loss_nor_gradient():
    bad, mask_BR = jnp.asarray([[0.1, jnp.nan]]), jnp.asarray([[True, False]])

    def loss(x):
        values, aux = clipped_surrogate(x, bad, bad, mask_BR, clip_low=0.2, clip_high=0.2)
        kl = sum(jnp.sum(kl_token_loss(x, bad, bad, mask_BR, kind=kind)) for kind in ("k3_biased", "k3_times_ratio"))
        return jnp.sum(values) + kl, aux

    gradient, aux = jax.grad(loss, has_aux=True)(bad)
    assert np.isfinite(gradient).all()
    assert all(np.isfinite(value) for value in aux.values())


def expected_gradient(per_sample):
    """Over the three outcomes of the worked categorical, the gradient of the mean of a loss of each."""
    found = GOLDEN["PPO9_kl_gradient_estimators"]
    logits_V = jnp.asarray(found["inputs"]["logits"])
    ref_V = jnp.log(jnp.asarray(found["inputs"]["ref_probs"]))

    def expectation(logits_V):
        logp_V = jax.nn.log_softmax(logits_V)
        old_V = jax.lax.stop_gradient(logp_V)
        return jnp.sum(jnp.exp(old_V) * per_sample(logp_V, old_V, ref_V))

    return jax.grad(expectation)(logits_V), found["expected"]


def test_k3_times_the_ratio_has_the_gradient_of_the_reverse_kl_and_k3_alone_that_of_the_forward(x64):
    def loss(kind):
        return lambda logp, old, ref: kl_token_loss(
            logp[None], old[None], ref[None], jnp.ones((1, 3), bool), kind=kind
        )[0]

    with_ratio, expected = expected_gradient(loss("k3_times_ratio"))
    np.testing.assert_allclose(with_ratio, expected["grad_reverse_kl"], atol=1e-8)
    alone, _ = expected_gradient(loss("k3_biased"))
    np.testing.assert_allclose(alone, expected["grad_forward_kl"], atol=1e-8)
    assert not np.allclose(alone, expected["grad_reverse_kl"], atol=1e-2)


def test_k1_as_a_loss_has_a_gradient_without_the_reference_which_is_why_it_is_not_offered(x64):
    # d/dlogits of log p - log ref is that of log p: the same for any reference, and 0 on average
    def gradient(ref_V):
        return jax.jacobian(lambda logits: jax.nn.log_softmax(logits) - ref_V)(jnp.asarray([0.3, -0.2, 0.8]))

    one, other = gradient(jnp.log(jnp.asarray([0.5, 0.3, 0.2]))), gradient(jnp.asarray([-9.0, -1.0, -3.0]))
    np.testing.assert_array_equal(one, other)
    averaged, _ = expected_gradient(lambda logp, old, ref: logp - ref)
    np.testing.assert_allclose(averaged, np.zeros(3), atol=1e-12)
    with pytest.raises(ValueError, match="kind must be k3_times_ratio or k3_biased, got 'k1'"):
        kl_token_loss(*(jnp.zeros((1, 1)),) * 3, jnp.ones((1, 1), bool), kind="k1")  # type: ignore[arg-type]


def test_the_best_of_n_rises_by_proxy_and_falls_by_gold():
    # sorted by proxy, gold is 1, 0, 2, 1.5, .5.  n = 1: 5 / 5; n = 2: (0 + 4 + 4.5 + 2) / 10; n = 3: (2 + 4.5 + 3) / 10
    proxy_BN, gold_BN = np.array([[0.4, 0.1, 0.9, 0.7, 0.2]]), np.array([[2.0, 1.0, 0.5, 1.5, 0.0]])
    golds = [best_of_n(proxy_BN, gold_BN, n) for n in (1, 2, 3, 5)]
    np.testing.assert_allclose(golds, [1.0, 1.05, 0.95, 0.5], rtol=1e-12)
    proxies = [best_of_n(proxy_BN, proxy_BN, n) for n in (1, 2, 3, 5)]
    np.testing.assert_allclose([proxies[0], proxies[-1]], [0.46, 0.9], rtol=1e-12)
    assert proxies == sorted(proxies)
    by_force = [gold_BN[0, max(s, key=lambda i: proxy_BN[0, i])] for s in itertools.combinations(range(5), 3)]
    np.testing.assert_allclose(golds[2], np.mean(by_force), rtol=1e-12)
