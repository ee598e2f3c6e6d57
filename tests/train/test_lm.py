"""Language modelling steps on a bigram table: what enters the loss, and what the step's key decides."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tables import bigram

from gptjax.run.mesh import put
from gptjax.train.lm import lm_step
from gptjax.train.mlm import mlm_step
from gptjax.train.rows import heldout_sums
from gptjax.train.sft import sft_step
from gptjax.train.update import advance, initial_state, step_key
from gptjax.types import LmBatch

SGD = optax.sgd(1.0)


def batch(mesh, tokens, targets, weights):
    tokens = np.array(tokens, np.int32)
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    host = LmBatch(
        tokens_BT=tokens,
        targets_BT=np.array(targets, np.int32),
        segments_BT=np.ones_like(tokens),
        positions_BT=places,
        weights_BT=np.array(weights, np.float32),
    )
    return put(host, mesh)


def start(table=None):
    return initial_state({"table": jnp.zeros((4, 4)) if table is None else table}, SGD, jax.random.key(0))


def test_the_z_loss_pulls_the_normaliser_to_one_and_stays_out_of_the_metric(one_device):
    # uniform rows: log Z = ln 4.  0 -> 1: gradient of nll p - [1], of c (ln Z)^2: 2 c ln 4 p = .25 * 2 * .5 * ln 4
    after, metrics = lm_step(start(), batch(one_device, [[0]], [[1]], [[1]]), model=bigram(), optimizer=SGD, z_loss=0.5)
    pull = 0.25 * np.log(4)
    expected = [-0.25 - pull, 0.75 - pull, -0.25 - pull, -0.25 - pull]
    np.testing.assert_allclose(after.params["table"][0], expected, atol=1e-6)
    np.testing.assert_allclose(metrics["lm/nats_per_token"], np.log(4), rtol=1e-6)
    np.testing.assert_allclose(metrics["lm/z_nats2"], np.log(4) ** 2, rtol=1e-6)


def test_the_loss_is_one_mean_over_all_targets_not_a_mean_of_row_means(one_device):
    # row 0: one target that costs ln 4; row 1: three targets 1 -> 1 that cost softplus-like ln(1 + 3 e^-2)
    table = jnp.zeros((4, 4)).at[1, 1].set(2.0)
    rows = batch(one_device, [[0, 0, 0], [1, 1, 1]], [[2, 2, 2], [1, 1, 1]], [[1, 0, 0], [1, 1, 1]])
    cheap = np.log(1 + 3 * np.exp(-2.0))
    _, metrics = lm_step(start(table), rows, model=bigram(), optimizer=SGD)
    np.testing.assert_allclose(metrics["lm/nats_per_token"], (np.log(4) + 3 * cheap) / 4, rtol=1e-6)
    assert abs(float(metrics["lm/nats_per_token"]) - (np.log(4) + cheap) / 2) > 0.1
    sums = heldout_sums(start(table), rows, model=bigram(), loss_chunks=3)
    np.testing.assert_allclose([sums.nll_sum, sums.weight_sum], [np.log(4) + 3 * cheap, 4], rtol=1e-6)


def test_weights_choose_between_the_mean_over_targets_and_over_conversations(one_device):
    # weights 1 / (targets of the conversation): (1 * ln 4 + 3 * 1/3 * cheap) / 2
    table = jnp.zeros((4, 4)).at[1, 1].set(2.0)
    rows = batch(one_device, [[0, 0, 0], [1, 1, 1]], [[2, 2, 2], [1, 1, 1]], [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    after, metrics = sft_step(start(table), rows, model=bigram(), optimizer=SGD)
    cheap = np.log(1 + 3 * np.exp(-2.0))
    np.testing.assert_allclose(metrics["sft/nats_per_token"], (np.log(4) + cheap) / 2, rtol=1e-6)
    assert int(metrics["sft/tokens"]) == 4
    # row 0 of the table has half of the weight: -(p - [2]) / 2
    np.testing.assert_allclose(after.params["table"][0], [-0.125, -0.125, 0.375, -0.125], atol=1e-6)


def test_a_target_of_small_weight_alone_is_still_a_mean(one_device):
    # one target of weight 1/4 in the whole batch: mean ln 4, not ln 4 / 4
    rows = batch(one_device, [[0, 1]], [[1, 2]], [[0.25, 0]])
    _, metrics = sft_step(start(), rows, model=bigram(), optimizer=SGD)
    np.testing.assert_allclose(metrics["sft/nats_per_token"], np.log(4), rtol=1e-6)


def noisy():
    """A bigram table whose hidden states are scaled by a number drawn from the key."""
    plain = bigram()

    def hidden(params, frozen, *rows, causal=True, key=None):
        h_BTD, _ = plain.hidden(params, frozen, *rows)
        return h_BTD * (1 + jax.random.uniform(key)), None

    return dataclasses.replace(plain, hidden=hidden)


@pytest.mark.parametrize("step", [lm_step, mlm_step, sft_step])
def test_dropout_changes_with_the_step_and_with_nothing_else(step, one_device):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
    rows, state = batch(one_device, [[0, 1, 2]], [[1, 2, 0]], [[1, 1, 1]]), start(table)
    later = dataclasses.replace(state, step=jnp.int32(1))

    def updates(model):
        run = jax.jit(partial(step, model=model, optimizer=SGD))
        return [np.asarray(run(at, rows)[0].params["table"]) for at in (state, state, later)]

    plain, _, _ = updates(bigram())
    first, again, next_one = updates(noisy())
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - next_one).max() > 1e-4
    assert np.abs(first - plain).max() > 1e-4


def test_an_update_counts_the_step_and_keeps_what_the_task_carries():
    state = initial_state({"w": jnp.asarray([1.0])}, SGD, jax.random.key(3), bias=jnp.asarray(2.0), kl=jnp.asarray(5.0))
    after, _ = advance(state, {"w": jnp.asarray([0.25])}, SGD, loss=jnp.asarray(1.0), kl=jnp.asarray(7.0))
    assert int(after.step) == 1
    assert float(after.params["w"][0]) == 0.75  # 1 - 1.0 * 0.25
    assert {name: float(x) for name, x in after.extra.items()} == {
        "updates_skipped": 0.0,
        "data_offset": 0.0,
        "bias": 2.0,
        "kl": 7.0,
    }
    np.testing.assert_array_equal(after.key, state.key)
    keys = [jax.random.key_data(step_key(s)).tolist() for s in (state, after)]
    assert keys[0] != keys[1]
