"""Reward modelling on a table of values: which token is scored, and what cannot matter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tables import table_of_values

from gptjax.run.mesh import put
from gptjax.train.reward import candidate_scores, reward_step
from gptjax.train.update import initial_state
from gptjax.types import RewardBatch

SGD, MODEL = optax.sgd(1.0), table_of_values()
STEP = jax.jit(partial(reward_step, model=MODEL, optimizer=SGD))
TOKENS = np.array([[[3, 1, 2, 0], [3, 0, 0, 0], [3, 2, 0, 0]], [[3, 3, 3, 1], [3, 3, 2, 2], [0, 0, 0, 0]]], np.int32)
LENGTHS = np.array([[3, 1, 2], [4, 2, 0]], np.int32)
RANKS = np.array([[1, 2, 3], [2, 1, 0]], np.int32)


def batch(mesh, tokens=TOKENS, lengths=LENGTHS, ranks=RANKS):
    return put(RewardBatch(tokens_BCT=tokens, lengths_BC=lengths, ranks_BC=ranks), mesh)


def updated(batch, values=(0.1, 0.7, -0.4, 0.3)):
    state = initial_state({"value": jnp.asarray(values, jnp.float32)}, SGD, jax.random.key(0))
    after, metrics = STEP(state, batch)
    return np.asarray(after.params["value"]), metrics


def test_the_last_real_token_is_scored(one_device):
    # last tokens 2, 3, 2 and 1, 3, none: tokens that hold the pad value 0 inside the length count too
    params = {"value": jnp.asarray([10.0, 11.0, 12.0, 13.0])}
    found = candidate_scores(params, {}, batch(one_device), model=MODEL)
    np.testing.assert_array_equal(found, [[12, 13, 12], [11, 13, 0]])
    ends_in_pad = batch(one_device, lengths=np.array([[4, 2, 3], [4, 2, 0]], np.int32))
    np.testing.assert_array_equal(candidate_scores(params, {}, ends_in_pad, model=MODEL)[0], [10, 10, 10])


def test_a_prompt_weighs_as_much_as_another_whatever_its_number_of_pairs(one_device):
    # all values 0, so every pair's slope is -1/2 for the better and 1/2 for the worse.
    # prompt 0, three pairs: candidate 0 (token 2) -1/3, candidate 1 (token 3) 0, candidate 2 (token 2) +1/3
    # prompt 1, one pair: candidate 1 (token 3) -1/2, candidate 0 (token 1) +1/2; the mean over two prompts halves it
    value, metrics = updated(batch(one_device), (0.0, 0.0, 0.0, 0.0))
    np.testing.assert_allclose(value, [0, -0.25, 0, 0.25], atol=1e-6)
    np.testing.assert_allclose(metrics["reward/loss_nats"], np.log(2), rtol=1e-6)
    assert (int(metrics["reward/prompts"]), int(metrics["reward/pairs"])) == (2, 4)


def test_a_step_by_hand(one_device):
    # one pair, last tokens 2 (better) and 1: d = -.4 - .7 = -1.1, slope sigmoid(1.1) = .750260
    tokens, lengths, ranks = [[[3, 1, 2], [3, 1, 0]]], [[3, 2]], [[1, 2]]
    pair = batch(one_device, *(np.array(x, np.int32) for x in (tokens, lengths, ranks)))
    value, metrics = updated(pair)
    slope = 1 / (1 + np.exp(-1.1))
    np.testing.assert_allclose(value, [0.1, 0.7 - slope, -0.4 + slope, 0.3], atol=1e-6)
    np.testing.assert_allclose(metrics["reward/loss_nats"], np.log1p(np.exp(1.1)), rtol=1e-6)
    assert float(metrics["reward/accuracy"]) == 0.0
    np.testing.assert_allclose([metrics["reward/score_mean"], metrics["reward/score_std"]], [0.15, 0.55], rtol=1e-5)


def test_what_stands_in_the_padding_changes_nothing(one_device):
    inside = np.arange(4) < LENGTHS[:, :, None]
    other = np.where(inside, TOKENS, 1).astype(np.int32)
    longer = np.pad(other, ((0, 0), (0, 1), (0, 2)), constant_values=2)
    wider = [np.pad(x, ((0, 0), (0, 1))) for x in (LENGTHS, RANKS)]
    value, metrics = updated(batch(one_device))
    for same in (batch(one_device, other), batch(one_device, longer, *wider)):
        value_same, metrics_same = updated(same)
        np.testing.assert_allclose(value_same, value, atol=1e-7)
        for name in metrics:
            np.testing.assert_allclose(metrics_same[name], metrics[name], atol=1e-6, err_msg=name)


def test_the_order_of_candidates_and_prompts_changes_nothing(one_device):
    turned = batch(one_device, *(x[::-1][:, [2, 0, 1]] for x in (TOKENS, LENGTHS, RANKS)))
    np.testing.assert_allclose(updated(turned)[0], updated(batch(one_device))[0], atol=1e-6)


def test_ties_alone_teach_nothing(one_device):
    value, metrics = updated(batch(one_device, ranks=np.array([[1, 1, 1], [2, 2, 0]], np.int32)))
    np.testing.assert_array_equal(value, np.array([0.1, 0.7, -0.4, 0.3], np.float32))
    assert (float(metrics["reward/loss_nats"]), int(metrics["reward/prompts"])) == (0.0, 0)
