"""Fused kernels against the reference, in Pallas' interpret mode and on cuDNN's XLA path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax import dims
from gptjax.nn.attention import attention, attention_mask, reference_kernel
from gptjax.nn.kernels import chosen_kernel, cudnn_kernel
from gptjax.run.mesh import MeshConfig, make_mesh


def rows(mesh, *, batch=2, length=128, heads=4, kv_heads=2, width=32):
    """Queries, keys, values, and segments: two documents, then padding."""
    rng = np.random.default_rng(0)

    def place(x, letters):
        return jax.device_put(jnp.asarray(x), NamedSharding(mesh, dims.act_spec(letters)))

    arrays = [
        place(rng.normal(size=(batch, length, n, width)).astype(np.float32), letters)
        for n, letters in ((heads, "BTNH"), (kv_heads, "BTKH"), (kv_heads, "BTKH"))
    ]
    cuts = np.array([[40, 100], [64, length]])[:batch]
    column_T = np.arange(length)
    segments = 1 + (column_T >= cuts[:, :1]) - 2 * (column_T >= cuts[:, 1:])
    return arrays, place(segments.astype(np.int32), "BT")


def value_and_gradients(kernel, arrays, segments_BT, **options):
    """The output, and gradients of a sum that weighs every entry of it differently."""

    def loss(q, k, v):
        out = attention(q, k, v, segments_BT, segments_BT, kernel=kernel, **options)
        weight = jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return jnp.sum(out * jax.sharding.reshard(weight, jax.typeof(out).sharding.spec)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return [np.asarray(x) for x in (out, *grads)]


@pytest.mark.parametrize(
    "options",
    [{"causal": True}, {"causal": False}, {"causal": True, "window": 9, "soft_cap": 0.5}],
    ids=["causal", "both sides", "windowed and capped"],
)
def test_splash_and_its_gradients_equal_the_reference_on_segments_and_grouped_queries(options, one_device):
    arrays, segments_BT = rows(one_device)
    pairs = zip(*(value_and_gradients(k, arrays, segments_BT, **options) for k in ("splash", "reference")), strict=True)
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_splash_on_a_mesh_equals_one_device():
    options = {"causal": True, "window": 100}
    results = []
    for config, devices in ((MeshConfig(), 1), (MeshConfig(fsdp=2, context=2, tensor=2), 8)):
        mesh = make_mesh(config, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            arrays, segments_BT = rows(mesh, length=256)
            kernel = "reference" if devices == 1 else "splash"
            results.append(value_and_gradients(kernel, arrays, segments_BT, **options))
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def on_the_host(mesh):
    return jax.tree.map(np.asarray, rows(mesh))


def test_cudnns_arguments_mean_what_the_reference_means(one_device):
    (q, k, v), segments_BT = on_the_host(one_device)
    mask_BTS = attention_mask(segments_BT, segments_BT, 0, causal=True, window=9)
    expected = reference_kernel(q, k, v, mask_BTS, scale=0.3)
    found = cudnn_kernel(q, k, v, mask_BTS, scale=0.3, implementation="xla")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found[0, 100:], 0.0)


def test_cudnns_program_lowers_for_cuda_on_its_xla_path(one_device):
    (q, k, v), segments_BT = on_the_host(one_device)

    def run(q, k, v, segments_BT):
        mask_BTS = attention_mask(segments_BT, segments_BT, 0, causal=True)
        return cudnn_kernel(q, k, v, mask_BTS, scale=0.3, implementation="xla")

    assert jax.jit(run).trace(q, k, v, segments_BT).lower(lowering_platforms=("cuda",)).as_text()


def choose(kernel="auto", **about):
    return chosen_kernel(
        kernel, **({"queries": 256, "keys": 256, "width": 64, "dtype": jnp.bfloat16, "soft_cap": None} | about)
    )


def test_auto_takes_what_the_platform_offers(monkeypatch):
    found = {}
    for name in ("cpu", "tpu", "gpu"):
        monkeypatch.setattr("gptjax.nn.kernels.platform", lambda name=name: name)
        found[name] = choose()
        if name == "tpu":
            assert choose(queries=100, keys=200) == "reference"
    assert found == {"cpu": "reference", "tpu": "splash", "gpu": "cudnn"}
    # the last three: what cuDNN itself refuses, a NotImplementedError in the middle of the first step
    others = ({"dtype": jnp.float32}, {"soft_cap": 5.0}, {"queries": 111, "keys": 111}, {"width": 20}, {"width": 136})
    assert [choose(**other) for other in others] == ["reference"] * 5


def test_a_kernel_that_cannot_serve_says_why():
    with pytest.raises(ValueError, match="blocks of 128 positions: a row's 200 tokens and the 100 of one device"):
        choose("splash", queries=100, keys=200)
    with pytest.raises(ValueError, match=r"'cudnn' knows no model\.soft_cap"):
        choose("cudnn", soft_cap=1.0)
    with pytest.raises(ValueError, match="even rows, not on heads of 20 and a row's 111 tokens, 111 on"):
        choose("cudnn", queries=111, keys=111, width=20)
