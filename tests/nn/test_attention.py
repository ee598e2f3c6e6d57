"""Attention against three nested loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN
from jax.sharding import NamedSharding

from gptjax import dims
from gptjax.nn.attention import attention, attention_mask, reference_kernel
from gptjax.run.mesh import MeshConfig, make_mesh

LM2 = GOLDEN["LM2_packing"]


def by_loops(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale):
    out_BTNH = np.zeros_like(q_BTNH)
    group = q_BTNH.shape[2] // k_BSKH.shape[2]
    for b, t, n in np.ndindex(q_BTNH.shape[:3]):
        allowed = np.flatnonzero(mask_BTS[b, t])
        if len(allowed):
            weight = np.exp(scale * k_BSKH[b, allowed, n // group] @ q_BTNH[b, t, n])
            out_BTNH[b, t, n] = weight / weight.sum() @ v_BSKH[b, allowed, n // group]
    return out_BTNH


def qkv(batch=2, length=6, heads=4, kv_heads=2, width=3):
    rng = np.random.default_rng(0)
    shapes = [(batch, length, n, width) for n in (heads, kv_heads, kv_heads)]
    return [rng.normal(size=shape) for shape in shapes]


def attended(mesh, q, k, v, q_segments, kv_segments, *, decoding=False, **options):
    def place(x, letters):
        return jax.device_put(x, NamedSharding(mesh, dims.act_spec(letters, decoding=decoding)))

    arrays = [place(x, letters) for x, letters in ((q, "BTNH"), (k, "BTKH"), (v, "BTKH"))]
    segments = place(q_segments, "BT"), place(kv_segments, "BS")
    return np.asarray(attention(*arrays, *segments, decoding=decoding, **options))


def test_the_kernel_equals_softmax_attention_written_as_loops(x64):
    q, k, v = qkv()
    mask_BTS = np.random.default_rng(1).integers(0, 2, (2, 6, 6)).astype(bool)
    mask_BTS[0, 3] = False
    found = reference_kernel(*map(jnp.asarray, (q, k, v, mask_BTS)), scale=0.7)
    np.testing.assert_allclose(found, by_loops(q, k, v, mask_BTS, 0.7), atol=1e-12)
    np.testing.assert_array_equal(found[0, 3], 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_attention_averages_over_the_document_so_far(dtype, one_device):
    expected = LM2["expected"]
    segments_BS = np.array([expected["segment_ids"]])
    mask_BTS = attention_mask(segments_BS, segments_BS, 0, causal=True)
    np.testing.assert_array_equal(mask_BTS[0], np.array(expected["attend"], bool))
    nothing = np.zeros((1, 8, 1, 1), dtype)  # all scores 0, and value s at position s
    v_BSKH = np.arange(8, dtype=dtype).reshape(1, 8, 1, 1)
    with jax.enable_x64(dtype == "float64"):
        found = attended(one_device, nothing, nothing, v_BSKH, segments_BS, segments_BS, causal=True).ravel()
    np.testing.assert_allclose(found, expected["uniform_attention_output"], atol=1e-6)
    assert not np.allclose(found, expected["WRONG_output_if_plain_causal"])


def test_attention_scales_by_the_root_of_the_head_width(x64, one_device):
    q, k, v = qkv()
    segments_BS = np.array([[1, 1, 1, 2, 2, 0], [0, 0, 3, 3, 3, 3]], np.int32)
    same_BTS = (segments_BS[:, :, None] == segments_BS[:, None]) & (segments_BS > 0)[:, :, None]
    for causal, mask_BTS in ((True, same_BTS & np.tri(6, dtype=bool)), (False, same_BTS)):
        found = attended(one_device, q, k, v, segments_BS, segments_BS, causal=causal)
        np.testing.assert_allclose(found, by_loops(q, k, v, mask_BTS, 3**-0.5), atol=1e-12)


@pytest.mark.parametrize("kernel_dtype", ["float32", "bfloat16"])
def test_padded_queries_give_zero_with_zero_gradients(kernel_dtype):
    q, k, v = (jnp.asarray(x, kernel_dtype) for x in qkv(batch=1))
    segments_BS = jnp.asarray([[1, 1, 0, 0, 0, 0]])
    mask_BTS = attention_mask(segments_BS, segments_BS, 0, causal=True)

    def total(q, k, v):
        return jnp.sum(reference_kernel(q, k, v, mask_BTS, scale=1.0)[:, 2:].astype(jnp.float32))

    assert reference_kernel(q, k, v, mask_BTS, scale=1.0).dtype == kernel_dtype
    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)
    assert float(value) == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(np.asarray(gradient, np.float32), 0.0)


def test_large_scores_do_not_overflow():
    # scores 1e4 and 0: the weight is 1 and 0, although exp(1e4) is infinite
    q_BTNH, k_BSKH = jnp.full((1, 1, 1, 1), 100.0), jnp.asarray([100.0, 0.0]).reshape(1, 2, 1, 1)
    v_BSKH = jnp.asarray([3.0, 5.0]).reshape(1, 2, 1, 1)
    found = reference_kernel(q_BTNH, k_BSKH, v_BSKH, jnp.ones((1, 1, 2), bool), scale=1.0)
    np.testing.assert_array_equal(found.ravel(), [3.0])


def test_a_single_query_sees_the_cache_up_to_its_own_slot(x64, one_device):
    q, k, v = qkv(batch=1)
    segments_BS = np.array([[0, 1, 1, 1, 1, 1]], np.int32)  # slots 4 and 5 lie in the future of slot 3
    query = q[:, 3:4], k, v, segments_BS[:, 3:4], segments_BS
    found = attended(one_device, *query, causal=True, q_offset=3, decoding=True)
    mask_BTS = np.array([[[False, True, True, True, False, False]]])
    np.testing.assert_allclose(found, by_loops(q[:, 3:4], k, v, mask_BTS, 3**-0.5), atol=1e-12)


def test_queries_spread_over_context_keep_their_place_in_the_row(x64):
    q, k, v = qkv(batch=1)
    segments_BS = np.ones((1, 6), np.int32)
    mesh = make_mesh(MeshConfig(data=1, context=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        found = attended(mesh, q, k, v, segments_BS, segments_BS, causal=True)
    np.testing.assert_allclose(found, by_loops(q, k, v, np.tri(6, dtype=bool)[None], 3**-0.5), atol=1e-12)
