"""GRPO and RLOO on tables, by hand: one update of each kind, whole groups in minibatches, and what cannot matter."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tables import bigram

from gptjax.run.mesh import put
from gptjax.train.group_rollout import judged_groups
from gptjax.train.grpo import GrpoConfig, GrpoLoss, RlooLoss, grpo_step
from gptjax.train.minibatch import minibatch_rows, taken
from gptjax.train.update import initial_state
from gptjax.types import GroupRollout

END, SGD, UNIFORM = 3, optax.sgd(1.0), np.log(0.25)
ONE = GrpoConfig(group_size=2, response_tokens=2, kl_coefficient=0.5)


def host_rollout(actions, advantages, *, counted=True, logp_old=UNIFORM, logp_ref=UNIFORM, numbers=None):
    """Prompts of the single token 0 (or of the prompt's number); responses of one or two tokens, -1 for none."""
    actions_BCR = np.array(actions)
    mask_BCR, shape = actions_BCR >= 0, actions_BCR.shape
    first_BC1 = np.zeros((*shape[:2], 1), int) if numbers is None else np.array(numbers)[:, None, None].repeat(2, 1)
    real_BCT = np.concatenate([np.ones_like(first_BC1), mask_BCR], axis=2).astype(np.int32)

    def full(value, shape=shape):
        return np.broadcast_to(np.asarray(value, np.float32), shape).copy()

    return GroupRollout(
        tokens_BCT=np.concatenate([first_BC1, np.maximum(actions_BCR, 0)], axis=2).astype(np.int32),
        segments_BCT=real_BCT,
        positions_BCT=np.maximum(np.cumsum(real_BCT, axis=2) - 1, 0).astype(np.int32),
        mask_BCR=mask_BCR,
        logp_old_BCR=np.where(mask_BCR, full(logp_old), 7.0).astype(np.float32),
        logp_ref_BCR=np.where(mask_BCR, full(logp_ref), np.nan).astype(np.float32),
        scores_BC=full(0.0, shape[:2]),
        rewards_BC=full(0.0, shape[:2]),
        advantages_BC=full(advantages, shape[:2]),
        counted_BC=np.broadcast_to(np.asarray(counted), shape[:2]).copy(),
        ended_BC=np.any(actions_BCR == END, axis=2),
    )


def updated(mesh, rollout, config, table=None):
    state = initial_state({"table": jnp.zeros((4, 4)) if table is None else table}, SGD, jax.random.key(0))
    step = jax.jit(partial(grpo_step, policy=bigram(), optimizer=SGD, config=config))
    after, metrics = step(state, put(rollout, mesh))
    return np.asarray(after.params["table"]), metrics


SHORT_AND_LONG = [[[1, -1], [2, END]]]  # answers of one and of two tokens
MOVES = {
    # advantages 1 and -1 at ratio 1; p = 1/4.  The gradient of a token's log-probability is [token] - p.
    # sequence: the one token of the first counts 1/2, each of the second -1/4
    "sequence": [[-1 / 16, 7 / 16, -5 / 16, -1 / 16], [1 / 16, 1 / 16, 1 / 16, -3 / 16]],
    # token: 1/3 and -1/3; constant, of 2 answers of at most 2 tokens: 1/4 and -1/4
    "token": [[0, 1 / 3, -1 / 3, 0], [1 / 12, 1 / 12, 1 / 12, -1 / 4]],
    "constant": [[0, 1 / 4, -1 / 4, 0], [1 / 16, 1 / 16, 1 / 16, -3 / 16]],
}


@pytest.mark.parametrize("how", MOVES)
def test_an_update_by_hand_with_each_average(how, one_device):
    config = dataclasses.replace(ONE, loss=GrpoLoss(aggregation=how))
    table, metrics = updated(one_device, host_rollout(SHORT_AND_LONG, [[1, -1]]), config)
    np.testing.assert_allclose([table[0], table[2]], MOVES[how], atol=1e-6)
    # (1 - 1 / 1) or (1 - 2) / 3 or (1 - 2) / 4
    loss = {"sequence": 0.0, "token": 1 / 3, "constant": 1 / 4}[how]
    np.testing.assert_allclose(metrics["grpo/policy_loss"], loss, atol=1e-6)
    assert [float(metrics[f"grpo/ratio_{name}"]) for name in ("min", "mean", "max")] == pytest.approx([1, 1, 1])
    assert (int(metrics["grpo/tokens"]), float(metrics["grpo/end_rate"])) == (3, 0.5)


@pytest.mark.parametrize("surrogate", ["clip", "reinforce"])
def test_rloo_takes_an_answer_as_one_action(surrogate, one_device):
    # every token counts 1/2 times the advantage of its answer
    config = dataclasses.replace(ONE, loss=RlooLoss(surrogate=surrogate))
    table, _ = updated(one_device, host_rollout(SHORT_AND_LONG, [[1, -1]]), config)
    np.testing.assert_allclose([table[0], table[2]], np.array(MOVES["constant"]) * 2, atol=1e-6)


def test_rloo_clips_the_ratio_of_whole_answers(one_device):
    # each token's ratio is 1.15, within .2; the answer's is 1.3225: no gradient for the praised one
    old = UNIFORM - np.log(1.15)
    rollout = host_rollout([[[1, END], [2, END]]], [[1, -1]], logp_old=old)
    table, metrics = updated(one_device, rollout, dataclasses.replace(ONE, loss=RlooLoss()))
    np.testing.assert_allclose(table[1], np.zeros(4), atol=1e-7)
    np.testing.assert_allclose(table[2], -0.5 * 1.3225 * np.array([-0.25, -0.25, -0.25, 0.75]), atol=1e-6)
    assert float(metrics["grpo/clip_high_fraction"]) == 0.5
    by_token, metrics = updated(one_device, rollout, ONE)
    assert np.abs(by_token[1]).max() > 0.1
    assert float(metrics["grpo/clip_high_fraction"]) == 0.0


def test_clip_higher_lets_a_praised_token_go_on(one_device):
    # ratio 1.25: beyond 1.2, within 1.28
    rollout = host_rollout([[[1, -1], [2, -1]]], [[1, 0]], logp_old=UNIFORM - np.log(1.25))
    still, metrics = updated(one_device, rollout, ONE)
    np.testing.assert_array_equal(still, np.zeros((4, 4)))
    assert float(metrics["grpo/clip_high_fraction"]) == 0.5
    moved, _ = updated(one_device, rollout, dataclasses.replace(ONE, loss=GrpoLoss(clip_high=0.28)))
    np.testing.assert_allclose(moved[0], 1.25 / 2 * np.array([-0.25, 0.75, -0.25, -0.25]), atol=1e-6)


@pytest.mark.parametrize("kl", ["k3_times_ratio", "k3_biased"])
def test_a_kl_loss_pulls_to_the_reference(kl, one_device):
    # reference 1/2 for token 1: k1 = ln(1/4) - ln(1/2) = -ln 2, k3 = 2 - 1 - ln 2; its slope in log p is
    # 1 - e^(-k1) = -1, with the ratio k3 more.  Coefficient .5; mean over two tokens, the other one at its reference
    rollout = host_rollout([[[1, -1], [2, -1]]], [[0, 0]], logp_ref=np.array([[[np.log(0.5)] * 2, [UNIFORM] * 2]]))
    table, metrics = updated(one_device, rollout, dataclasses.replace(ONE, loss=GrpoLoss(kl=kl)))
    slope = -1.0 + (1 - np.log(2) if kl == "k3_times_ratio" else 0.0)
    np.testing.assert_allclose(table[0], -0.5 / 2 * slope * np.array([-0.25, 0.75, -0.25, -0.25]), atol=1e-6)
    np.testing.assert_allclose(metrics["grpo/kl_loss_nats"], (1 - np.log(2)) / 2, rtol=1e-5)
    in_reward, _ = updated(one_device, rollout, ONE)
    np.testing.assert_array_equal(in_reward, np.zeros((4, 4)))  # there it is part of the advantages already


@pytest.mark.parametrize("loss", [GrpoLoss(aggregation="sequence", kl="k3_times_ratio"), RlooLoss()])
def test_samples_that_do_not_count_move_nothing(loss, one_device):
    config = dataclasses.replace(ONE, loss=loss, group_size=3)
    three = host_rollout([[[1, -1], [2, END], [1, 1]]], [[1, -1, np.nan]], counted=[[True, True, False]])
    broken = dataclasses.replace(three, scores_BC=np.array([[1.0, 3.0, np.nan]], np.float32))
    table, metrics = updated(one_device, broken, config)
    two, _ = updated(one_device, host_rollout(SHORT_AND_LONG, [[1, -1]]), dataclasses.replace(config, group_size=2))
    np.testing.assert_allclose(table, two, atol=1e-6)
    assert [int(metrics[f"grpo/{name}_samples"]) for name in ("uncounted", "unscored")] == [1, 1]
    assert float(metrics["grpo/score"]) == 2.0
    assert all(np.isfinite(value) for value in metrics.values())
    none, metrics = updated(one_device, dataclasses.replace(broken, counted_BC=np.zeros((1, 3), bool)), config)
    np.testing.assert_array_equal(none, np.zeros((4, 4)))
    assert all(np.isfinite(value) for value in metrics.values())


def test_minibatches_are_cut_along_prompts(one_device):
    # 6 prompts, numbered by their first token, in 3 minibatches of 2 whole groups: each epoch holds every prompt once
    config = GrpoConfig(group_size=2, minibatches=3, epochs=2, response_tokens=2)
    rollout = put(host_rollout([[[1, 2], [2, END]]] * 6, [[1, -1]] * 6, numbers=range(6)), one_device)
    state = initial_state({"w": jnp.zeros(1)}, SGD, jax.random.key(0))
    orders = []
    for step in range(6):
        rows_B, _ = minibatch_rows(dataclasses.replace(state, step=jnp.int32(step)), config, 6)
        batch = taken(rollout, rows_B)
        numbers_BC = np.asarray(batch.tokens_BCT[:, :, 0])
        np.testing.assert_array_equal(numbers_BC[:, 0], numbers_BC[:, 1])
        np.testing.assert_array_equal(batch.tokens_BCT[:, :, 1:], [[[1, 2], [2, END]]] * 2)
        orders += numbers_BC[:, 0].tolist()
    assert sorted(orders[:6]) == sorted(orders[6:]) == list(range(6))
    assert orders[:6] != orders[6:]


def judged(config, scores, ended, k1):
    """Groups of two-token answers whose KL from the reference is k1 nats in all."""
    k1_BC = jnp.asarray(k1, jnp.float32)
    shape = (*k1_BC.shape, 2)
    logp_BCR = jnp.broadcast_to(k1_BC[:, :, None] / 2, shape)
    return judged_groups(
        jnp.asarray(scores, jnp.float32), jnp.asarray(ended), logp_BCR, jnp.zeros(shape), jnp.ones(shape, bool), config
    )


def test_a_truncated_answer_is_penalised_or_left_out():
    scores, ended, k1 = [[1.0, 3.0, 5.0]], [[True, True, False]], [[0.0, 0.0, 0.0]]
    plain = GrpoConfig(loss=GrpoLoss(scale=False), missing_end_penalty=2.5)
    found = judged(plain, scores, ended, k1)
    np.testing.assert_allclose(found["rewards_BC"], [[1, 3, 2.5]])
    np.testing.assert_allclose(found["advantages_BC"], np.array([[1, 3, 2.5]]) - 6.5 / 3, rtol=1e-5)
    masked = judged(dataclasses.replace(plain, truncated="mask"), scores, ended, k1)
    np.testing.assert_allclose(masked["advantages_BC"], [[-1, 1, 0]])
    assert masked["counted_BC"].tolist() == [[True, True, False]]


def test_the_kl_is_in_the_reward_unless_it_is_a_loss():
    # k1 of .5 nats at .2 reward units per nat
    scores, ended, k1 = [[1.0, 3.0]], [[True, True]], [[0.5, -1.0]]
    for loss, rewards in (
        (GrpoLoss(scale=False), [0.9, 3.2]),
        (RlooLoss(), [0.9, 3.2]),
        (GrpoLoss(scale=False, kl="k3_times_ratio"), [1.0, 3.0]),
    ):
        found = judged(GrpoConfig(kl_coefficient=0.2, loss=loss), scores, ended, k1)
        np.testing.assert_allclose(found["rewards_BC"], [rewards], rtol=1e-6)
        spread = (rewards[1] - rewards[0]) * (1.0 if isinstance(loss, RlooLoss) else 0.5)
        np.testing.assert_allclose(found["advantages_BC"], [[-spread, spread]], rtol=1e-5)


def test_a_nan_score_or_reference_is_counted_and_masked():
    nan = float("nan")
    found = judged(GrpoConfig(loss=RlooLoss()), [[1.0, nan, 2.0, 6.0]], [[True] * 4], [[0.0, 0.0, nan, 0.0]])
    assert found["counted_BC"].tolist() == [[True, False, False, True]]
    np.testing.assert_allclose(found["advantages_BC"], [[-5, 0, 0, 5]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group_size": 1}, "grpo.group_size must be at least 2: answers are compared, got 1"),
        ({"minibatches": 0}, "grpo.minibatches must be at least 1, got 0"),
        ({"temperature": 0.0}, "grpo.temperature must be positive, got 0.0"),
        ({"epochs": 0}, "grpo.epochs must be at least 1, got 0"),
        ({"loss": RlooLoss(surrogate="reinforce"), "epochs": 2}, "a rollout gets 2 updates"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        GrpoConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clip_low": 1.0}, "grpo.loss.clip_low must lie between 0 and 1, got 1.0"),
        ({"clip_high": 0.0}, "grpo.loss.clip_high must be positive, got 0.0"),
        ({"eps": 0.0}, "grpo.loss.eps must be positive, got 0.0"),
    ],
)
def test_wrong_bounds_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        GrpoLoss(**wrong)


def test_minibatches_that_do_not_divide_the_rollout_are_refused():
    state = initial_state({"w": jnp.zeros(1)}, optax.sgd(1.0), jax.random.key(0))
    with pytest.raises(ValueError, match="3 minibatches do not divide a rollout of 64 prompts"):
        minibatch_rows(state, GrpoConfig(minibatches=3), 64)


def test_an_update_counts_its_own_tokens_and_not_those_of_the_whole_rollout(one_device):
    config = GrpoConfig(group_size=2, minibatches=3, response_tokens=2)
    rollout = host_rollout([[[1, 2], [2, END]]] * 6, [[1, -1]] * 6, numbers=range(6))
    assert int(updated(one_device, rollout, config)[1]["grpo/tokens"]) == 8
