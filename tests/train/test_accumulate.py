"""A gradient from microbatches is the gradient of the batch."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parity_tasks import SIZES, lm_batch, reward_batch
from tables import bigram

from gptjax.data.candidates import packed
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.train.accumulate import accumulated, totals
from gptjax.train.lm import lm_step
from gptjax.train.reward import reward_step
from gptjax.train.update import initial_state


def test_shares_of_rows_add_up_to_the_gradient_of_their_mean(one_device):
    # loss: mean over counted rows of p x row, counts 1, 0, 1, 1: gradient (1 + 4 + 8) / 3; two microbatches of 1 + 1
    # and 0 + 1 counted rows, whose own means would give (5 / 2 + 8) / 2
    rows, counted = jnp.asarray([1.0, 2.0, 4.0, 8.0]), jnp.asarray([1.0, 0.0, 1.0, 1.0])
    count = jnp.sum(counted)

    def share(p, batch, number):
        rows, counted, scale = batch
        found = jnp.sum(p * rows * counted) * scale
        return found / count, {"sum": jnp.sum(counted), "row_max": jnp.max(rows), "row_min": jnp.min(rows)}

    for microbatches in (1, 2, 4):
        grads, aux = accumulated(share, jnp.asarray(3.0), (rows, counted, jnp.asarray(1.0)), microbatches)
        np.testing.assert_allclose(grads, 13 / 3, rtol=1e-6)
        assert aux["sum"].shape == (microbatches,)
        assert jax.tree.map(float, totals(aux)) == {"sum": 3.0, "row_max": 8.0, "row_min": 1.0}


def test_a_microbatch_is_every_second_row_and_no_row_leaves_its_device():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        rows = jax.sharding.reshard(jnp.arange(8.0), jax.P(("data", "fsdp", "expert")))

        def share(p, rows, number):
            assert jax.typeof(rows).sharding.spec == jax.P(("data", "fsdp", "expert"))
            return p * jnp.sum(rows), rows

        run = jax.jit(lambda rows: accumulated(share, jnp.asarray(1.0), rows, 2))
        program = run.lower(rows).compile().as_text()
        _, seen = run(rows)
    assert seen.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert not any(kind in program for kind in ("all-to-all", "all-gather", "collective-permute"))


@pytest.mark.parametrize(
    ("objective", "dtype", "tolerance"),
    [
        ("lm", "float64", 1e-12),
        pytest.param("reward", "float64", 1e-12, marks=pytest.mark.slow),
        pytest.param("lm", "float32", 1e-6, marks=pytest.mark.slow),
        pytest.param("reward", "float32", 1e-6, marks=pytest.mark.slow),
    ],
)
def test_an_update_from_microbatches_is_the_update(objective, dtype, tolerance):
    # rows with targets and without, and with experts, whose losses have a count of their own
    with jax.enable_x64(dtype == "float64"), jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        config = ModelConfig(**(SIZES | {"layers": 1}), dtype=dtype, experts=2, router_z_coefficient=0.1)
        model = language_model(config) if objective == "lm" else scalar_model(config)
        rng, sgd = np.random.default_rng(0), optax.sgd(1.0)
        if objective == "lm":
            batch = lm_batch(rng, rows=4)
            batch.weights_BT[0] = 0.0
        else:
            given = reward_batch(rng, prompts=4)
            given.ranks_BC[1] = 1
            batch = packed(given, 16, microbatches=2)
        step = partial(lm_step if objective == "lm" else reward_step, model=model, optimizer=sgd)
        state = initial_state(jax.jit(model.init)(jax.random.key(0)), sgd, jax.random.key(1))
        placed = put(batch, jax.sharding.get_mesh())
        (whole, figures), (pieces, same) = (
            jax.jit(partial(step, microbatches=number))(state, placed) for number in (1, 2)
        )
    # a sum rounds in proportion to its largest terms: those of a gradient, tensor by tensor (sgd at 1: the change)
    trees = [jax.tree.map(np.asarray, tree) for tree in (state.params, whole.params, pieces.params)]
    for (path, before), a, b in zip(jax.tree.leaves_with_path(trees[0]), *map(jax.tree.leaves, trees[1:]), strict=True):
        atol = tolerance * max(1.0, np.max(np.abs(a - before)))
        np.testing.assert_allclose(b, a, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))
    for name, value in figures.items():
        np.testing.assert_allclose(same[name], value, rtol=10 * tolerance, atol=10 * tolerance, err_msg=name)


def test_microbatches_drop_out_differently(one_device):
    plain = bigram()

    def hidden(params, frozen, tokens_BT, segments_BT, positions_BT, *, causal=True, key=None):
        h_BTD, router = plain.hidden(params, frozen, tokens_BT, segments_BT, positions_BT)
        return h_BTD * jax.random.uniform(key), router

    noisy = dataclasses.replace(plain, hidden=hidden)
    batch = put(lm_batch(np.random.default_rng(0), rows=2, length=4), one_device)
    tokens = jax.tree.map(lambda x: x % 4, batch)
    state = initial_state({"table": jnp.ones((4, 4))}, optax.sgd(1.0), jax.random.key(0))
    step = partial(lm_step, model=noisy, optimizer=optax.sgd(1.0))
    one, two = (step(state, tokens, microbatches=number)[0].params["table"] for number in (1, 2))
    assert not np.allclose(one, two)
