"""Ring attention is attention: same values, same gradients, and memory that falls with the `context` axis."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import reshard

from gptjax import dims
from gptjax.nn.attention import attention
from gptjax.nn.context import ring_attention
from gptjax.run.mesh import MeshConfig, make_mesh

MESHES = {
    "context 4 tensor 2": MeshConfig(data=1, context=4, tensor=2),
    "fsdp 2 context 2": MeshConfig(data=1, fsdp=2, context=2),
    "one device": MeshConfig(data=1),
}
RULES = {
    "causal": {"causal": True},
    "both sides": {"causal": False},
    "window": {"causal": True, "window": 7},
    "window on both sides, capped": {"causal": False, "window": 5, "soft_cap": 1.5},
    "capped": {"causal": True, "soft_cap": 2.0},
}

QUICK = {("context 4 tensor 2", "causal"), ("context 4 tensor 2", "window on both sides, capped")}


def mesh_of(config):
    devices = config.fsdp * config.context * config.tensor
    return make_mesh(config, jax.devices()[:devices])


def rows(rng, length=24, heads=4, kv_heads=2, width=6):
    """Queries, keys, values, segments: three documents and padding in one row, one document in the other."""
    q, k, v = (rng.normal(size=(2, length, n, width)) for n in (heads, kv_heads, kv_heads))
    packed = np.repeat([1, 2, 3, 0], [9, 8, 4, 3])
    return q, k, v, np.stack([packed, np.ones(length)]).astype(np.int32)


def outcome(attend, arrays):
    """Output of an attention and the gradients of a function of it."""
    q, k, v, segments = arrays

    def loss(q, k, v):
        out = attend(q, k, v, segments, segments)
        return jnp.sum(jnp.sin(out * jnp.arange(1.0, 1 + out.shape[-1])[None, None, None])), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return jax.tree.map(np.asarray, (out, *grads))


def placed(arrays):
    return [
        reshard(jnp.asarray(x), dims.act_spec(y)) for x, y in zip(arrays, ("BTNH", "BTKH", "BTKH", "BT"), strict=True)
    ]


CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(["context 4 tensor 2", "one device"], RULES)
]


@pytest.mark.parametrize(("mesh", "rule"), CASES)
def test_a_ring_gives_the_values_and_gradients_of_the_reference(mesh, rule, x64):
    arrays = rows(np.random.default_rng(0))
    with jax.set_mesh(mesh_of(MESHES["one device"])):
        expected = outcome(partial(attention, **RULES[rule]), placed(arrays))
    with jax.set_mesh(mesh_of(MESHES[mesh])):
        found = outcome(partial(ring_attention, **RULES[rule], block=4), placed(arrays))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_gathered_keys_give_the_same_on_a_mesh(rule, x64):
    arrays = rows(np.random.default_rng(1))
    with jax.set_mesh(mesh_of(MESHES["one device"])):
        expected = outcome(partial(attention, **RULES[rule]), placed(arrays))
    with jax.set_mesh(mesh_of(MESHES["fsdp 2 context 2"])):
        found = outcome(partial(attention, **RULES[rule]), placed(arrays))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


def test_a_padded_query_attends_nothing_and_moves_nothing(x64):
    q, k, v, _ = rows(np.random.default_rng(2))
    with jax.set_mesh(mesh_of(MESHES["fsdp 2 context 2"])):
        segments = np.zeros(q.shape[:2], np.int32)
        found = outcome(partial(ring_attention, causal=True, block=4), placed((q, k, v, segments)))
    assert all(np.all(x == 0.0) for x in found)


@pytest.mark.slow
def test_bfloat16_rows_stay_close_to_the_reference_in_float32():
    arrays = rows(np.random.default_rng(3))
    narrow = [x if x.dtype == np.int32 else jnp.asarray(x, jnp.bfloat16) for x in arrays]
    wide = [x if x.dtype == np.int32 else x.astype(jnp.float32) for x in narrow]
    with jax.set_mesh(mesh_of(MESHES["fsdp 2 context 2"])):
        found = outcome(partial(ring_attention, causal=True, block=4), placed(narrow))
        expected = outcome(partial(attention, causal=True), placed(wide))
    assert found[0].dtype == jnp.bfloat16
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=0.05, atol=0.15)


def temporary_bytes(attend, context, length=32_768):
    """What one device needs besides arguments and results for attention and its gradient, by the compiler's count."""
    mesh = make_mesh(MeshConfig(data=1, context=context), jax.devices()[:context])
    with jax.set_mesh(mesh):

        def struct(letters, dtype=jnp.float32):
            sharding = jax.NamedSharding(mesh, dims.act_spec(letters))
            return jax.ShapeDtypeStruct(
                dims.shape(letters, {"B": 1, "T": length, "N": 4, "K": 2, "H": 64}), dtype, sharding=sharding
            )

        def loss(q, k, v, segments):
            return jnp.sum(jnp.square(attend(q, k, v, segments, segments, causal=True)))

        arguments = struct("BTNH"), struct("BTKH"), struct("BTKH"), struct("BT", jnp.int32)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes


def test_the_temporaries_of_a_ring_fall_with_the_context_axis_at_32768_positions():
    alone, spread = temporary_bytes(ring_attention, 1), temporary_bytes(ring_attention, 8)
    assert spread < alone / 4
    # Gathered keys and one head's scores alone take 32,768 x 4,096 x 4 bytes.
    assert spread < 32_768 * 4_096 * 4 / 4
