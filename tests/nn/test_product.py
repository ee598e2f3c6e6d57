"""Quantised products against a plain NumPy transcription, their gradients, and their layout on eight devices."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec, reshard

from gptjax import dims
from gptjax.nn.gather import gathered, gathered_rows, scattered_rows
from gptjax.nn.product import product
from gptjax.run.mesh import MeshConfig, make_mesh

WHOLE = PartitionSpec(None, None)
SIZES = {"B": 4, "T": 8, "D": 16, "N": 4, "H": 6, "F": 32}
EQUATIONS = ("BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTF,FD->BTD")


@pytest.fixture
def qwix():
    return pytest.importorskip("qwix", reason="quantised products need qwix: pip install -e '.[quant]'")


def numbers(letters, seed):
    return np.random.default_rng(seed).normal(size=dims.shape(letters, SIZES)) * 3


def rounded(x, summed):
    """(integers, scale): the largest |x| of a channel becomes 127."""
    scale = np.abs(x).max(axis=summed, keepdims=True) / 127
    return np.rint(x / scale), scale


def transcription(x_BTNH, w_NHD):
    (x_ints, x_scale), (w_ints, w_scale) = rounded(x_BTNH, (2, 3)), rounded(w_NHD, (0, 1))
    return np.einsum("BTNH,NHD->BTD", x_ints, w_ints) * x_scale[..., 0] * w_scale[0]


def int8(x, w, matmuls="int8"):
    return product("BD,DF->BF", x, w, WHOLE, matmuls)


def test_an_int8_product_by_hand(qwix, x64, one_device):
    # scales 1 and 1 / 127: (127, 1.4) -> (127, 1); (1, 0.25) -> (127, 31.75 -> 32); (127 * 127 + 1 * 32) / 127
    found = int8(jnp.asarray([[127.0, 1.4]]), jnp.asarray([[1.0], [0.25]]))
    np.testing.assert_allclose(found, [[127 + 32 / 127]], rtol=1e-12)
    # the largest number is kept, whatever its sign, and nothing remains nothing
    np.testing.assert_allclose(int8(jnp.asarray([[-0.3], [0.0]]), jnp.asarray([[-7.0]])), [[2.1], [0.0]], rtol=1e-12)


def test_an_int8_product_is_absmax_quantisation_per_channel(qwix, x64, one_device):
    x_BTNH, w_NHD = numbers("BTNH", 0), numbers("NHD", 1)
    x_BTNH[0, 0], w_NHD[..., 3] = 1000.0, 0.0  # a large token and a dead channel disturb no other
    x_BTNH[0, 0, 1, 2] = -2000.0
    found = product("BTNH,NHD->BTD", jnp.asarray(x_BTNH), jnp.asarray(w_NHD), PartitionSpec(None, None, None), "int8")
    np.testing.assert_array_equal(found[..., 3], 0.0)
    w_NHD[..., 3] = 1e-30  # the transcription divides by the largest
    np.testing.assert_allclose(found, transcription(x_BTNH, w_NHD), rtol=1e-12, atol=1e-12)


def gradients(matmuls, x, w, g):
    return jax.grad(lambda x, w: jnp.sum(int8(x, w, matmuls) * g), (0, 1))(x, w)


def test_gradients_are_int8_towards_activations_and_full_towards_weights(qwix, x64, one_device):
    x_BD, w_DF, g_BF = (np.random.default_rng(seed).normal(size=s) for seed, s in enumerate([(7, 16), (16, 5), (7, 5)]))
    dx_BD, dw_DF = gradients("int8", *map(jnp.asarray, (x_BD, w_DF, g_BF)))
    (g_ints, g_scale), (w_ints, w_scale) = rounded(g_BF, 1), rounded(w_DF, 1)
    np.testing.assert_allclose(dx_BD, g_ints @ w_ints.T * g_scale * w_scale[:, 0], rtol=1e-12)
    np.testing.assert_allclose(dw_DF, x_BD.T @ g_BF, rtol=1e-12)


@pytest.mark.parametrize(("matmuls", "bound"), [("int8", 0.01), ("fp8", 0.07)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_stay_close_to_the_full_ones(matmuls, bound, dtype, qwix, one_device):
    shapes = [(64, 96), (96, 48), (64, 48)]
    arrays = [jnp.asarray(np.random.default_rng(seed).normal(size=s), dtype) for seed, s in enumerate(shapes)]
    found = int8(*arrays[:2], matmuls), *gradients(matmuls, *arrays)
    expected = int8(*arrays[:2], "full"), *gradients("full", *arrays)
    for name, a, b in zip(("value", "dx", "dw"), found, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        far = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert far < bound, (name, far)
        assert (far > bound / 10) == (name != "dw"), (name, far)  # the product is quantised at all


@pytest.mark.parametrize(
    ("equation", "matmuls", "spread"),
    [(equation, "int8", spread) for equation in EQUATIONS for spread in (False, True)] + [(EQUATIONS[1], "fp8", True)],
)
def test_a_mesh_gives_one_devices_numbers_in_the_layout_of_full_products(equation, matmuls, spread, qwix, x64):
    """Also where rows are spread over `tensor`, and sums over it stay open until they are scattered."""
    terms, out = equation.split("->")
    of_x, of_w = terms.split(",")

    def run(how, layout):
        mesh = make_mesh(layout, jax.devices()[: 8 if layout.tensor > 1 else 1])
        spec = dims.act_spec(out)
        if spread and out == "BTD":
            spec = PartitionSpec(*spec, unreduced=frozenset({"tensor"}))

        def loss(x, w, g):
            x = gathered_rows(x) if spread and of_x == "BTD" else x
            y = product(equation, x, gathered(w, of_w), spec, how)
            y = scattered_rows(y) if spec.unreduced else y
            return jnp.sum(y * g), y

        with jax.set_mesh(mesh):
            x_spec, y_spec = (
                dims.residual_spec(spread=spread) if letters == "BTD" else dims.act_spec(letters)
                for letters in (of_x, out)
            )
            x, w, g = (
                reshard(jnp.asarray(numbers(letters, seed)), where)
                for seed, (letters, where) in enumerate([(of_x, x_spec), (of_w, dims.param_spec(of_w)), (out, y_spec)])
            )
            found, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, w, g)
            return *found, y

    alone, mesh = MeshConfig(data=1), MeshConfig(data=1, fsdp=2, context=2, tensor=2)
    found, full = run(matmuls, mesh), run("full", mesh)
    for a, b, c in zip(found, run(matmuls, alone), full, strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=1e-12, atol=1e-12)
        assert a.sharding == c.sharding
    assert np.abs(np.asarray(found[-1]) - np.asarray(full[-1])).max() > 1e-3


def test_without_qwix_it_is_said_what_to_install(one_device, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ValueError, match=r"model.matmuls 'int8' needs qwix: pip install -e '.\[quant\]'"):
        int8(jnp.ones((1, 2)), jnp.ones((2, 1)))
    np.testing.assert_array_equal(int8(jnp.ones((1, 2)), jnp.ones((2, 1)), "full"), [[2.0]])
