"""One PPO update on tables, by hand: policy, value and pre-training gradients, clipping, and what cannot matter."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tables import bigram, linear_head, table_of_values

from gptjax.model_types import RouterSums
from gptjax.run.mesh import put
from gptjax.train.ppo import PpoConfig, initial_extra, minibatch, ppo_step
from gptjax.train.update import initial_state
from gptjax.types import LmBatch, Rollout

END = 3
SGD = optax.sgd(1.0)
UNIFORM = -np.log(4)


def host_rollout(actions, advantages, returns, *, logp_old=UNIFORM, padding=0, pretrain=None):
    """Prompts of the single token 0 and responses of one token each, with so much padding after it."""
    n = len(actions)
    tokens_BT = np.zeros((n, 2 + padding), np.int32)
    tokens_BT[:, 1] = actions
    real_BT = np.broadcast_to((np.arange(2 + padding) < 2).astype(np.int32), tokens_BT.shape)
    places_BT = np.minimum(np.broadcast_to(np.arange(2 + padding, dtype=np.int32), tokens_BT.shape), 1)

    def response(values):
        column_B1 = np.broadcast_to(np.asarray(values, np.float32), n)[:, None]
        return np.pad(column_B1, ((0, 0), (0, padding)), constant_values=7.0)

    return Rollout(
        tokens_BT=tokens_BT,
        segments_BT=real_BT,
        positions_BT=places_BT,
        mask_BR=np.arange(1 + padding)[None].repeat(n, 0) < 1,
        logp_old_BR=response(logp_old),
        logp_ref_BR=response(logp_old),
        values_BR=response(0.0),
        rewards_BR=response(0.0),
        advantages_BR=response(advantages),
        returns_BR=response(returns),
        scores_B=np.zeros(n, np.float32),
        ended_B=np.asarray(actions) == END,
        pretrain=pretrain,
    )


BIGRAM = bigram()


def updated(mesh, rollout, config, policy=BIGRAM):
    params = {"policy": {"table": jnp.zeros((4, 4))}, "value": {"value": jnp.zeros(4)}}
    state = initial_state(params, SGD, jax.random.key(0), **initial_extra(config, params["policy"]))
    step = partial(ppo_step, policy=policy, scalar=table_of_values(), optimizer=SGD, config=config)
    after, metrics = jax.jit(step)(state, put(rollout, mesh))
    return after.params["policy"]["table"], after.params["value"]["value"], metrics


PAIR = PpoConfig(minibatches=1, response_tokens=1)


@pytest.mark.parametrize("padding", [0, 2])
def test_an_update_by_hand(one_device, padding):
    # p = 1/4 everywhere.  Advantages 3 and 1 whiten to 1 and -1: loss = -(ratio_1 - ratio_end) / 2, so the policy's
    # row 0 moves by ([1] - [end]) / 2.  Critic: V = 0, returns 1 and -3: slope ((0 - 1) + (0 + 3)) / 2 = 1
    rollout = host_rollout([1, END], [3.0, 1.0], [1.0, -3.0], padding=padding)
    table, value, metrics = updated(one_device, rollout, PAIR)
    expected = np.zeros((4, 4))
    expected[0] = [0, 0.5, 0, -0.5]
    np.testing.assert_allclose(table, expected, atol=1e-6)
    np.testing.assert_allclose(value, [-1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(metrics["ppo/value_loss"], 0.5 * (1 + 9) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["ppo/entropy_nats_per_token"], np.log(4), rtol=1e-6)
    np.testing.assert_allclose(metrics["optim/grad_norm_policy"], 0.5**0.5, rtol=1e-5)
    assert [float(metrics[f"ppo/{name}"]) for name in ("tokens", "response_tokens", "end_rate")] == [2, 1, 0.5]


def test_a_ratio_that_went_too_far_in_the_good_direction_is_left_alone(one_device):
    # ratios 1.5 and 1 (clip .2): the first, with advantage 1, has no gradient; the second, -1, pushes [end] down by
    # ([end] - p) / 2
    old = [-np.log(4) - np.log(1.5), -np.log(4)]
    rollout = host_rollout([1, END], [3.0, 1.0], [0.0, 0.0], logp_old=old)
    table, _, metrics = updated(one_device, rollout, PAIR)
    np.testing.assert_allclose(table[0], [0.125, 0.125, 0.125, -0.375], atol=1e-6)
    np.testing.assert_allclose(metrics["ppo/clip_fraction"], 0.5)
    np.testing.assert_allclose(metrics["ppo/policy_loss"], (-1.2 + 1.0) / 2, atol=1e-6)
    np.testing.assert_allclose([metrics["ppo/ratio_max"], metrics["ppo/ratio_mean"]], [1.5, 1.25], rtol=1e-5)


def test_the_end_token_is_an_action_with_a_gradient(one_device):
    # both rows end at once; the praised one and the blamed one differ only in what they are: END goes up by 3/8 + 1/8
    table, _, _ = updated(one_device, host_rollout([END, 1], [3.0, 1.0], [0.0, 0.0]), PAIR)
    np.testing.assert_allclose(table[0, END], 0.5, atol=1e-6)


def test_pretraining_adds_its_gradient_to_the_same_update(one_device):
    # 0 -> 2 twice, weight .5 of the mean: row 0 moves by another .5 ([2] - p)
    tokens = np.zeros((2, 1), np.int32)
    ptx = LmBatch(
        tokens_BT=tokens,
        targets_BT=tokens + 2,
        segments_BT=tokens + 1,
        positions_BT=tokens,
        weights_BT=np.ones((2, 1), np.float32),
    )
    rollout = host_rollout([1, END], [3.0, 1.0], [1.0, -3.0], pretrain=ptx)
    table, value, metrics = updated(one_device, rollout, dataclasses.replace(PAIR, ptx_coefficient=0.5))
    np.testing.assert_allclose(table[0], [-0.125, 0.375, 0.375, -0.625], atol=1e-6)
    np.testing.assert_allclose(value, [-1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(metrics["ppo/ptx_nats_per_token"], np.log(4), rtol=1e-6)
    # the two gradients of row 0: (0, 1, 0, -1) / 2 and (1, 1, -3, 1) / 4, the second at half weight
    np.testing.assert_allclose(metrics["optim/grad_norm_policy"], 0.5**0.5, rtol=1e-5)
    np.testing.assert_allclose(metrics["optim/grad_norm_ptx"], 0.75**0.5, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/ptx_gradient_ratio"], 0.5 * (0.75 / 0.5) ** 0.5, rtol=1e-5)


def test_a_value_head_teaches_the_trunk_with_its_weight(one_device):
    # V = h . (1, 0, 0, 0) = table[0, 0] = 0 and returns 1 and -3: slope 1 as above, times .1; the head sees h = 0
    config = dataclasses.replace(PAIR, value_model="head", value_coefficient=0.1)
    params = {"policy": {"table": jnp.zeros((4, 4))}, "value": {"head": jnp.eye(4)[0], "bias": jnp.zeros(())}}
    state = initial_state(params, SGD, jax.random.key(0), **initial_extra(config, params["policy"]))
    about = {"policy": bigram(), "scalar": table_of_values(), "head": linear_head(), "config": config}
    rollout = put(host_rollout([1, END], [3.0, 1.0], [1.0, -3.0]), one_device)
    after, metrics = jax.jit(partial(ppo_step, **about, optimizer=SGD))(state, rollout)
    np.testing.assert_allclose(after.params["policy"]["table"][0], [-0.1, 0.5, 0, -0.5], atol=1e-6)
    np.testing.assert_allclose(after.params["value"]["head"], [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(after.params["value"]["bias"], -0.1, atol=1e-6)
    np.testing.assert_allclose(metrics["ppo/value_loss"], 0.5 * (1 + 9) / 2, rtol=1e-6)


def test_tokens_that_the_sampler_drew_too_rarely_weigh_more_up_to_the_cap(one_device):
    # trained probability 1.5 times the sampler's: weight 1.5, or 1.2 with that cap; the update grows by as much
    rollout = host_rollout([1, END], [3.0, 1.0], [0.0, 0.0])
    rollout = dataclasses.replace(rollout, logp_sampler_BR=rollout.logp_old_BR - np.float32(np.log(1.5)))
    for cap, weight in ((2.0, 1.5), (1.2, 1.2)):
        table, _, metrics = updated(one_device, rollout, dataclasses.replace(PAIR, importance_cap=cap))
        np.testing.assert_allclose(table[0], [0, 0.5 * weight, 0, -0.5 * weight], atol=1e-5)
    np.testing.assert_allclose(metrics["ppo/sampler_gap_mean_nats"], np.log(1.5), rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/sampler_gap_max_nats"], np.log(1.5), rtol=1e-5)


def test_temperature_divides_the_logits_in_training_too(one_device):
    # at T = 1/2 the slope of log p in the logits doubles
    table, _, _ = updated(
        one_device, host_rollout([1, END], [3.0, 1.0], [0.0, 0.0]), dataclasses.replace(PAIR, temperature=0.5)
    )
    np.testing.assert_allclose(table[0], [0, 1, 0, -1], atol=1e-6)


def test_the_order_of_the_rollout_changes_nothing(one_device):
    rng = np.random.default_rng(0)
    rollout = host_rollout(rng.integers(0, 4, 6), rng.normal(size=6), rng.normal(size=6))
    turned = jax.tree.map(lambda x: x[::-1] if np.ndim(x) else x, rollout)
    for a, b in zip(updated(one_device, rollout, PAIR)[:2], updated(one_device, turned, PAIR)[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_minibatches_carry_their_share_of_pretraining_rows(one_device):
    # 4 prompts and 8 pre-training rows in 2 minibatches: rows 0..3, then 4..7
    numbers = np.arange(8, dtype=np.int32)[:, None]
    ptx = LmBatch(
        tokens_BT=numbers, targets_BT=numbers, segments_BT=numbers, positions_BT=numbers, weights_BT=numbers * 1.0
    )
    rollout = put(host_rollout([0] * 4, [0.0] * 4, [0.0] * 4, pretrain=ptx), one_device)
    state = initial_state({"w": jnp.zeros(1)}, SGD, jax.random.key(0))
    for step, wanted in enumerate([[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]):
        at = dataclasses.replace(state, step=jnp.int32(step))
        _, rows = minibatch(at, rollout, PpoConfig(minibatches=2))
        assert np.asarray(rows.tokens_BT).ravel().tolist() == wanted


def test_an_update_counts_its_own_tokens_and_not_those_of_the_whole_rollout(one_device):
    rollout = host_rollout([0, 1, 2, END], [0.0] * 4, [0.0] * 4)
    *_, metrics = updated(one_device, rollout, PpoConfig(minibatches=4, response_tokens=1))
    assert int(metrics["ppo/tokens"]) == 1


def test_the_pretraining_coefficient_does_not_weigh_the_routers_loss(one_device):
    # a router whose loss is the sum of the table: its slope is 1 / rows everywhere, in the rollout and in the text
    def hidden(params, *rows, **how):
        summed, nothing = jnp.sum(params["table"]) * rows[1].shape[0], jnp.zeros(())
        router = RouterSums(loss=summed, balance=nothing, z=nothing, dropped=nothing, choices=nothing)
        return BIGRAM.hidden(params, *rows, **how)[0], router

    ones = np.ones((2, 2), np.int32)
    text = LmBatch(tokens_BT=ones, targets_BT=ones, segments_BT=ones, positions_BT=ones, weights_BT=ones * 1.0)
    rollout = host_rollout([1, END], [0.0, 0.0], [0.0, 0.0], pretrain=text)
    routing = dataclasses.replace(BIGRAM, hidden=hidden)
    for coefficient in (0.5, 10.0):
        config = dataclasses.replace(PAIR, ptx_coefficient=coefficient)
        without, routed = (updated(one_device, rollout, config, policy)[0] for policy in (BIGRAM, routing))
        np.testing.assert_allclose(without - routed, 2.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"minibatches": 0}, "ppo.minibatches must be at least 1, got 0"),
        ({"temperature": 0.0}, "ppo.temperature must be positive, got 0.0"),
        ({"epochs": 0}, "ppo.epochs must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        PpoConfig(**wrong)
