"""What can be switched on in PPO, on tables of four tokens: stops, refusals, averages, whitening, clipping, weights."""

import dataclasses
import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tables import bigram, table_of_values

from gptjax.losses.returns import gae, whitened
from gptjax.run.mesh import put
from gptjax.train.ppo import initial_extra, minibatch, ppo_step, served_policy
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.rollout import collect
from gptjax.train.update import initial_state
from gptjax.types import LmBatch, PpoBatch, PromptBatch

END, LONGEST = 3, 3
BASE = PpoConfig(minibatches=2, epochs=2, response_tokens=LONGEST, kl_coefficient=0.2)
REWARDS = (0.0, 1.0, -1.0, 0.5)


POLICY, SCALAR, ADAM = bigram(), table_of_values(), optax.adam(0.1)
TABLE, REFERENCE = (np.random.default_rng(n).normal(size=(4, 4)).astype(np.float32) for n in range(2))
WATCHED = dataclasses.replace(BASE, stop_kl=1e6, average_decay=0.75)


def world(mesh, config, *, rewards=REWARDS, reference=REFERENCE):
    """(state, rollout, step) of a policy that has left its reference."""
    frozen = {
        "reference": {"table": jnp.asarray(reference)},
        "reward": {"value": jnp.asarray(rewards, jnp.float32)},
        "reward_gain": jnp.float32(1.0),
        "reward_bias": jnp.float32(0.0),
    }
    params = {"policy": {"table": jnp.asarray(TABLE)}, "value": {"value": jnp.ones(4)}}
    state = initial_state(params, ADAM, jax.random.key(0), **initial_extra(config, params["policy"]))
    tokens_BP = np.random.default_rng(2).integers(0, 3, (16, 4)).astype(np.int32)
    prompts = PromptBatch(tokens_BP=tokens_BP, lengths_B=np.tile(np.arange(1, 5, dtype=np.int32), 4))
    sampling = dataclasses.replace(BASE, **{name: getattr(config, name) for name in COLLECTED})
    start = dataclasses.replace(state, extra={"kl_coefficient": state.extra["kl_coefficient"]})
    return state, collector(sampling)(start, frozen, put(PpoBatch(prompts=prompts), mesh)), stepper(config)


COLLECTED = ("score_clip", "whiten_rewards", "whiten_advantages")  # the settings that change a rollout here


@functools.cache
def collector(config):
    run = partial(collect, policy=POLICY, scalar=SCALAR, config=config, end_id=END)
    return jax.jit(lambda state, frozen, batch: run(state, frozen, batch, jax.random.key(5)))


@functools.cache
def stepper(config):
    return jax.jit(partial(ppo_step, policy=POLICY, scalar=SCALAR, optimizer=ADAM, config=config))


def test_a_first_update_that_is_not_finite_does_not_leave_the_rollout_stopped_by_the_one_before(one_device):
    state, rollout, step = world(one_device, WATCHED)
    state = dataclasses.replace(state, extra=state.extra | {"stopped": jnp.ones((), bool)})
    broken = dataclasses.replace(rollout, returns_BR=jnp.full_like(rollout.returns_BR, jnp.nan))
    after, metrics = step(state, broken)
    assert (int(metrics["optim/updates_skipped"]), bool(after.extra["stopped"])) == (1, False)
    _, metrics = step(after, rollout)
    assert int(metrics["ppo/updates"]) == 1


def test_updates_stop_for_the_rest_of_a_rollout_once_the_policy_went_too_far(one_device):
    # the first update always happens (k3 = 0) and goes further than 1.5 x 1e-6 nats; the other three leave no trace
    config = dataclasses.replace(BASE, stop_kl=1e-6, average_decay=0.5)
    state, rollout, step = world(one_device, config)
    first, metrics = step(state, rollout)
    assert (int(metrics["ppo/updates"]), int(first.extra["updates_made"])) == (1, 1)
    later = first
    for _ in range(3):
        later, metrics = step(later, rollout)
        assert int(metrics["ppo/updates"]) == 0
    chex.assert_trees_all_equal(
        (first.params, first.opt_state, first.extra["average"]), (later.params, later.opt_state, later.extra["average"])
    )
    assert (int(later.step), int(later.extra["updates_made"]), bool(later.extra["stopped"])) == (4, 1, True)
    # the next rollout starts afresh
    fresh, metrics = step(later, dataclasses.replace(rollout, version=jnp.int32(1), logp_old_BR=_now(later, rollout)))
    assert (int(metrics["ppo/updates"]), bool(fresh.extra["stopped"])) == (1, False)


def _now(state, rollout):
    """Log-probabilities of the rollout's tokens under the state's policy."""
    logp = np.asarray(jax.nn.log_softmax(state.params["policy"]["table"]))
    tokens = np.asarray(rollout.tokens_BT)
    return jnp.asarray(logp[tokens[:, -LONGEST - 1 : -1], tokens[:, -LONGEST:]])


def test_a_stop_that_is_never_reached_changes_nothing(one_device):
    state, rollout, step = world(one_device, BASE)
    careful, _, watched = world(one_device, WATCHED)
    for _ in range(4):
        state, careful = step(state, rollout)[0], watched(careful, rollout)[0]
        chex.assert_trees_all_equal(
            (state.params, state.opt_state, state.key), (careful.params, careful.opt_state, careful.key)
        )
    assert int(state.extra["updates_made"]) == int(careful.extra["updates_made"]) == 4


@pytest.mark.parametrize(("max_lag", "made"), [(0, 0), (1, 1)])
def test_a_rollout_of_an_older_policy_is_refused(max_lag, made, one_device):
    # sampled before rollout 0's updates, offered at those of rollout 1: one rollout old
    state, rollout, step = world(one_device, dataclasses.replace(BASE, max_lag=max_lag))
    assert int(rollout.version) == 0
    later = dataclasses.replace(state, step=jnp.int32(BASE.updates))
    after, metrics = step(later, rollout)
    assert (int(metrics["ppo/updates"]), int(metrics["ppo/stale"])) == (made, 1 - made)
    assert int(after.extra["updates_made"]) == made
    if not made:
        chex.assert_trees_all_equal((after.params, after.opt_state), (later.params, later.opt_state))


def test_the_average_follows_the_policy_and_is_what_is_served(one_device):
    # decay .75: a' = .75 a + .25 p after each update
    state, rollout, step = world(one_device, WATCHED)
    expected = np.asarray(state.params["policy"]["table"], np.float64)
    for _ in range(3):
        state, _ = step(state, rollout)
        expected = 0.75 * expected + 0.25 * np.asarray(state.params["policy"]["table"], np.float64)
    np.testing.assert_allclose(served_policy(state)["table"], expected, atol=1e-6)
    plain, _, _ = world(one_device, BASE)
    assert served_policy(plain) is plain.params["policy"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_response_without_a_finite_score_is_counted_and_seen_by_nothing(bad, one_device):
    # responses that end in token 1 have no score: the update is that of a rollout in which they were never sampled
    state, rollout, step = world(one_device, BASE, rewards=(0.0, bad, -1.0, 0.5))
    _, whole, _ = world(one_device, BASE)
    lost_B = ~np.asarray(rollout.mask_BR).any(axis=1)
    last_B = np.asarray(whole.tokens_BT)[np.arange(16), 3 + np.asarray(whole.mask_BR).sum(axis=1)]
    assert lost_B.tolist() == (last_B == 1).tolist()
    assert 0 < lost_B.sum() < 16
    after, metrics = step(state, rollout)
    assert int(metrics["ppo/unscored"]) == lost_B.sum()
    np.testing.assert_allclose(metrics["ppo/score"], np.asarray(whole.scores_B)[~lost_B].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["ppo/response_tokens"], np.asarray(whole.mask_BR)[~lost_B].sum(1).mean())
    for _ in range(3):
        after, metrics = step(after, rollout)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((after.params, after.opt_state)))
        assert all(np.isfinite(value) for value in metrics.values())


def test_a_rollout_without_any_score_leaves_the_parameters_finite(one_device):
    state, rollout, step = world(one_device, BASE, rewards=(np.nan,) * 4)
    after, metrics = step(state, rollout)
    chex.assert_trees_all_equal(after.params, state.params)
    assert int(metrics["ppo/unscored"]) == 16
    assert all(np.isfinite(value) for value in metrics.values())


def test_scores_are_clipped_after_the_missing_end_rule(one_device):
    # ends score .5, clipped to .4; without an end -1 - 1, -0 - 1 and 1 - 1 are clipped to -.4, -.4 and 0
    _, rollout, _ = world(one_device, dataclasses.replace(BASE, score_clip=0.4))
    last_B = np.asarray(rollout.tokens_BT)[np.arange(16), 3 + np.asarray(rollout.mask_BR).sum(axis=1)]
    expected = np.array([-0.4, 0.0, -0.4, 0.4], np.float32)[last_B]
    np.testing.assert_array_equal(rollout.scores_B, expected)


def test_rewards_and_advantages_are_whitened_over_the_span_that_was_chosen(one_device):
    _, raw, _ = world(one_device, BASE)
    _, both, _ = world(one_device, dataclasses.replace(BASE, whiten_rewards="rollout", whiten_advantages="rollout"))
    rewards = whitened(raw.rewards_BR, raw.mask_BR, shift_mean=False)
    advantages, returns = gae(rewards, raw.values_BR, raw.mask_BR, discount=1.0, trace=0.95)
    np.testing.assert_allclose(both.rewards_BR, rewards, atol=1e-5)
    np.testing.assert_allclose(both.returns_BR, returns, atol=1e-5)  # of advantages that are not whitened
    np.testing.assert_allclose(both.advantages_BR, whitened(advantages, raw.mask_BR), atol=1e-5)


def test_a_minibatch_that_is_the_whole_rollout_is_whitened_like_it(one_device):
    def gradients(span, minibatches):
        config = dataclasses.replace(BASE, minibatches=minibatches, whiten_rewards=span, whiten_advantages=span)
        state, rollout, step = world(one_device, config)
        _, metrics = step(state, rollout)
        return [float(metrics[f"optim/grad_norm_{name}"]) for name in ("policy", "value")]

    np.testing.assert_allclose(gradients("minibatch", 1), gradients("rollout", 1), rtol=1e-5)
    assert not np.allclose(gradients("minibatch", 2), gradients("rollout", 2), rtol=1e-3)


def test_the_figures_of_a_rollout_are_those_of_its_arrays(one_device):
    state, rollout, step = world(one_device, BASE)
    _, metrics = step(state, rollout)
    mask, k1 = np.asarray(rollout.mask_BR), np.asarray(rollout.logp_old_BR - rollout.logp_ref_BR, np.float64)
    kl, scores = (k1 * mask).sum(1), np.asarray(rollout.scores_B)
    expected = {
        "kl_nats_per_sequence": kl.mean(),
        "kl_k3_nats_per_sequence": ((np.exp(-k1) - 1 + k1) * mask).sum(1).mean(),
        "score": scores.mean(),
        "non_score_reward": -0.2 * kl.mean(),
        "reward": np.asarray(rollout.rewards_BR).sum(1).mean(),
        "response_tokens": mask.sum(1).mean(),
        "end_rate": np.asarray(rollout.ended_B).mean(),
        "unscored": 0,
        "stale": 0,
    }
    found = {name: float(metrics[f"ppo/{name}"]) for name in expected}
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5, err_msg=str(found))
    assert float(metrics["ppo/sampler_gap_max_nats"]) < 1e-5


def test_the_sum_of_k1_is_the_log_ratio_of_the_sequences_and_zero_at_the_reference(one_device):
    # rewards of a response add up to score - .2 (log p(y) - log ref(y)), the sequence probabilities as products
    _, rollout, _ = world(one_device, BASE)
    mask = np.asarray(rollout.mask_BR)
    p, ref = (
        np.prod(np.where(mask, np.exp(np.float64(x)), 1.0), axis=1) for x in (rollout.logp_old_BR, rollout.logp_ref_BR)
    )
    expected = np.asarray(rollout.scores_B) - 0.2 * np.log(p / ref)
    np.testing.assert_allclose(np.asarray(rollout.rewards_BR).sum(1), expected, atol=1e-5)
    state, rollout, step = world(one_device, BASE, reference=TABLE)
    _, metrics = step(state, rollout)
    assert float(metrics["ppo/kl_nats_per_sequence"]) == float(metrics["ppo/non_score_reward"]) == 0.0


def test_a_ratio_extreme_is_one_of_a_token_that_counts(one_device):
    # every token is e^.5 as likely as before: without the mask the padding's ratio of 1 would be the smallest
    state, rollout, step = world(one_device, BASE)
    _, metrics = step(state, dataclasses.replace(rollout, logp_old_BR=rollout.logp_old_BR - 0.5))
    np.testing.assert_allclose([metrics["ppo/ratio_min"], metrics["ppo/ratio_max"]], np.exp(0.5), rtol=1e-5)


def test_eight_pretraining_rows_per_prompt_are_cut_with_the_prompts(one_device):
    ones = np.ones((128, 2), np.int32)
    rows = LmBatch(tokens_BT=ones, targets_BT=ones, segments_BT=ones, positions_BT=ones, weights_BT=ones * 1.0)
    config = dataclasses.replace(BASE, ptx_coefficient=1.0, ptx_rows=8)
    state, rollout, _ = world(one_device, config)
    rollout = dataclasses.replace(rollout, pretrain=put(rows, one_device))
    assert minibatch(state, rollout, config)[1].tokens_BT.shape == (64, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stop_kl": 0.0}, "ppo.stop_kl must be positive, got 0.0"),
        ({"score_clip": -1.0}, "ppo.score_clip must be positive, got -1.0"),
        ({"kl_target": 0.0}, "ppo.kl_target must be positive, got 0.0"),
        ({"importance_cap": 0.0}, "ppo.importance_cap must be positive, got 0.0"),
        ({"clip": 0.0}, "ppo.clip must be positive, got 0.0"),
        ({"value_clip": float("inf")}, "ppo.value_clip must be finite, got inf"),
        ({"kl_horizon": 0.0}, "ppo.kl_horizon must be positive, got 0.0"),
        ({"trace": 1.5}, r"ppo.trace must lie in \[0, 1\], got 1.5"),
        ({"max_lag": -1}, "ppo.max_lag must not be negative, got -1"),
        ({"average_decay": 1.0}, r"ppo.average_decay must lie in \[0, 1\), got 1.0"),
        (
            {"whiten_rewards": "minibatch", "whiten_advantages": "rollout"},
            "makes each minibatch's advantages anew, which ppo.whiten_advantages 'rollout' has whitened before",
        ),
        ({"ptx_rows": 0}, "ppo.ptx_rows must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        PpoConfig(**wrong)
