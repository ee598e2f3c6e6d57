"""Lookup and unembedding with the vocabulary whole and spread over two devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax import dims
from gptjax.nn.embedding import lookup, unembed
from gptjax.run.mesh import MeshConfig, make_mesh

TOKENS = np.array([[0, 3, 4], [7, 4, 0]], np.int32)  # rows of either half of a vocabulary of 8


@pytest.fixture(params=[1, 2], ids=["tensor 1", "tensor 2"])
def placed(request):
    """(table_VD in NumPy, a function that puts an array on the mesh)."""
    mesh = make_mesh(MeshConfig(data=1, tensor=request.param), jax.devices()[: request.param])
    with jax.set_mesh(mesh):
        yield (
            np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32),
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
        )


def test_lookup_gives_the_rows_of_the_table(placed):
    table_VD, put = placed
    found = lookup(put(table_VD, dims.gathered_spec("VD")), put(TOKENS, dims.act_spec("BT")), jnp.float32)
    np.testing.assert_array_equal(found, table_VD[TOKENS])


def test_the_gradient_of_lookup_adds_up_where_a_token_repeats(placed):
    # tokens 0 and 4 occur twice, 3 and 7 once, the others never
    table_VD, put = placed
    tokens_BT = put(TOKENS, dims.act_spec("BT"))
    gradient = jax.grad(lambda table: jnp.sum(lookup(table, tokens_BT, jnp.float32)))(
        put(table_VD, dims.gathered_spec("VD"))
    )
    np.testing.assert_array_equal(np.asarray(gradient)[:, 0], [2, 0, 0, 1, 2, 0, 0, 1])


@pytest.mark.parametrize(("words", "travel"), [(128, "tokens"), (8, "columns")])
@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"fsdp": 2, "tensor": 2}, {"fsdp": 2, "expert": 2, "context": 2}])
def test_tokens_travel_to_a_table_longer_than_they_are_many(words, travel, sizes):
    mesh = make_mesh(MeshConfig(data=1, **sizes), jax.devices()[: math.prod(sizes.values())])
    rng = np.random.default_rng(2)
    table_VD, tokens_BT = rng.normal(size=(words, 8)), rng.integers(0, words, (8, 8)).astype(np.int32)
    g_BTD = rng.normal(size=(8, 8, 8))
    expected = np.zeros_like(table_VD)
    np.add.at(expected, tokens_BT, g_BTD)
    with jax.set_mesh(mesh):
        specs = dims.param_spec("VD"), dims.act_spec("BT"), dims.act_spec("BTD")
        placed = [
            jax.device_put(jnp.asarray(x), NamedSharding(mesh, spec))
            for x, spec in zip((table_VD.astype(np.float32), tokens_BT, g_BTD.astype(np.float32)), specs, strict=True)
        ]

        @jax.jit
        def both(table_VD, tokens_BT, g_BTD):
            h_BTD, back = jax.vjp(lambda table: lookup(table, tokens_BT, jnp.float32), table_VD)
            return h_BTD, *back(g_BTD)

        h_BTD, gradient_VD = both(*placed)
        program = both.lower(*placed).compile().as_text()
    np.testing.assert_array_equal(h_BTD, table_VD.astype(np.float32)[tokens_BT])
    np.testing.assert_allclose(gradient_VD, expected, rtol=0, atol=1e-5)
    assert ("all-to-all" in program) == (travel == "tokens")


def test_many_gradients_of_one_word_are_summed_in_float32():
    # in bfloat16 the sum stops at 256, where adding 1 changes nothing
    mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        table_VD = jax.device_put(jnp.zeros((1024, 2)), NamedSharding(mesh, dims.param_spec("VD")))
        tokens_BT = jax.device_put(jnp.full((2, 500), 7), NamedSharding(mesh, dims.act_spec("BT")))

        def total(table_VD):
            return jnp.sum(lookup(table_VD, tokens_BT, jnp.bfloat16).astype(jnp.float32))

        gradient_VD = np.asarray(jax.jit(jax.grad(total))(table_VD))
    assert gradient_VD[7].tolist() == [1000.0, 1000.0]


def test_unembedding_multiplies_with_every_row(placed):
    table_VD, put = placed
    h_BTD = np.random.default_rng(1).normal(size=(2, 3, 5)).astype(np.float32)
    logits_BTV = unembed(put(h_BTD, dims.act_spec("BTD")), put(table_VD, dims.gathered_spec("VD")))
    np.testing.assert_allclose(logits_BTV, h_BTD @ table_VD.T, atol=1e-5)
    assert jax.typeof(logits_BTV).sharding.spec == PartitionSpec(dims.BATCH_AXES, "context", "tensor")


def test_logits_of_half_precision_states_are_summed_in_float32(one_device):
    # 256 + 1 = 257 is not a bfloat16 (spacing 2 there)
    h_BTD, table_VD = jnp.ones((1, 1, 2), jnp.bfloat16), jnp.asarray([[256.0, 1.0]], jnp.bfloat16)
    logits_BTV = unembed(h_BTD, table_VD)
    assert logits_BTV.dtype == jnp.float32
    assert float(logits_BTV[0, 0, 0]) == 257.0
