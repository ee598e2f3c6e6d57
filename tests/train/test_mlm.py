"""Masked language modelling on a Transformer: both sides are seen, other documents are not."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tables import bigram

from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.train.mlm import mlm_step
from gptjax.train.rows import heldout_sums
from gptjax.train.update import initial_state
from gptjax.types import LmBatch

SGD = optax.sgd(1.0)
CONFIG = ModelConfig(vocab_size=20, layers=2, width=16, heads=4, kv_heads=2, max_length=16)


def rows(mesh, tokens, targets, weights, segments, positions=None):
    integers = [np.array(x, np.int32) for x in (tokens, targets, segments)]
    places = np.broadcast_to(np.arange(integers[0].shape[1]), integers[0].shape) if positions is None else positions
    host = LmBatch(
        tokens_BT=integers[0],
        targets_BT=integers[1],
        segments_BT=integers[2],
        positions_BT=np.array(places, np.int32),
        weights_BT=np.array(weights, np.float32),
    )
    return put(host, mesh)


MODEL = language_model(CONFIG)
STEP = jax.jit(partial(mlm_step, model=MODEL, optimizer=SGD))


@pytest.fixture(scope="module")
def state():
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        return jax.jit(lambda key: initial_state(MODEL.init(key), SGD, key))(jax.random.key(0))


def test_a_step_by_hand(one_device):
    # the table knows nothing: each of two selected tokens costs ln 4; rows 3 (mask) and 1 move by (1/4 - [target]) / 2
    state = initial_state({"table": jnp.zeros((4, 4))}, SGD, jax.random.key(0))
    batch = rows(one_device, [[0, 3, 1]], [[0, 2, 1]], [[0, 1, 1]], [[1, 1, 1]])
    after, metrics = mlm_step(state, batch, model=bigram(), optimizer=SGD)
    np.testing.assert_allclose(metrics["mlm/nats_per_token"], np.log(4), rtol=1e-6)
    expected = np.zeros((4, 4))
    expected[3], expected[1] = [-0.125, -0.125, 0.375, -0.125], [-0.125, 0.375, -0.125, -0.125]
    np.testing.assert_allclose(after.params["table"], expected, atol=1e-6)
    assert (int(metrics["mlm/tokens"]), int(metrics["mlm/row_tokens"])) == (2, 3)


def test_nothing_selected_costs_nothing_and_changes_nothing(state, one_device):
    batch = rows(
        one_device, [[5, 6, 7, 0, 0, 0, 0, 0]] * 2, [[5] * 8] * 2, [[0] * 8] * 2, [[1, 1, 1, 0, 0, 0, 0, 0]] * 2
    )
    after, metrics = STEP(state, batch)
    assert float(metrics["mlm/nats_per_token"]) == 0.0
    chex.assert_trees_all_equal(after.params, state.params)


def test_a_hidden_token_is_guessed_from_both_sides_of_its_own_document(state, one_device):
    # the third token is hidden; tokens on either side change the guess, another document and padding do not
    sums = jax.jit(partial(heldout_sums, model=MODEL, causal=False))

    def cost(*tokens):
        targets, weights = [[5, 6, 9, 8, 10, 11, 0]], [[0, 0, 1, 0, 0, 0, 0]]
        batch = rows(one_device, [tokens], targets, weights, [[1, 1, 1, 1, 2, 2, 0]], [[0, 1, 2, 3, 0, 1, 0]])
        return float(sums(state, batch).nll_sum)

    plain = cost(5, 6, 7, 8, 10, 11, 0)
    assert abs(cost(5, 12, 7, 8, 10, 11, 0) - plain) > 1e-4
    assert abs(cost(5, 6, 7, 12, 10, 11, 0) - plain) > 1e-4
    assert cost(5, 6, 7, 8, 12, 11, 3) == plain


def test_packing_changes_neither_loss_nor_gradient(state, one_device):
    packed = rows(
        one_device,
        [[5, 7, 7, 8, 9, 7, 0, 0], [0] * 8],
        [[5, 6, 7, 8, 9, 10, 0, 0], [0] * 8],
        [[0, 1, 1, 0, 0, 1, 0, 0], [0] * 8],
        [[1, 1, 1, 1, 2, 2, 0, 0], [0] * 8],
        [[0, 1, 2, 3, 0, 1, 0, 0], [0] * 8],
    )
    alone = rows(
        one_device,
        [[5, 7, 7, 8, 0, 0, 0, 0], [9, 7, 0, 0, 0, 0, 0, 0]],
        [[5, 6, 7, 8, 0, 0, 0, 0], [9, 10, 0, 0, 0, 0, 0, 0]],
        [[0, 1, 1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]],
        [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]],
    )
    (a, metrics), (b, expected) = STEP(state, packed), STEP(state, alone)
    np.testing.assert_allclose(metrics["mlm/nats_per_token"], expected["mlm/nats_per_token"], rtol=1e-5)
    chex.assert_trees_all_close(a.params, b.params, rtol=1e-7, atol=1e-5)
