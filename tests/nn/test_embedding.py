"""Lookup and unembedding with the vocabulary whole and spread over two devices."""

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
    found = lookup(put(table_VD, dims.gathered_spec("VD")), put(TOKENS, dims.act_spec("BT")))
    np.testing.assert_array_equal(found, table_VD[TOKENS])


def test_the_gradient_of_lookup_adds_up_where_a_token_repeats(placed):
    # tokens 0 and 4 occur twice, 3 and 7 once, the others never
    table_VD, put = placed
    tokens_BT = put(TOKENS, dims.act_spec("BT"))
    gradient = jax.grad(lambda table: jnp.sum(lookup(table, tokens_BT)))(put(table_VD, dims.gathered_spec("VD")))
    np.testing.assert_array_equal(np.asarray(gradient)[:, 0], [2, 0, 0, 1, 2, 0, 0, 1])


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
