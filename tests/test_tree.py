"""Fingerprints: every bit counts, no layout does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.tree import fingerprints, named_leaves

MASK = 2**32 - 1


def mixed(word: int) -> int:
    """The same finaliser in Python's unbounded integers."""
    word = (word ^ (word >> 16)) * 0x85EBCA6B & MASK
    word = (word ^ (word >> 13)) * 0xC2B2AE35 & MASK
    return word ^ (word >> 16)


def only(x) -> str:
    return fingerprints({"x": x})["x"]


def test_leaves_are_named_by_their_path():
    assert list(named_leaves({"b": [1, 2], "a": {"c": 3}})) == ["a.c", "b.0", "b.1"]
    assert fingerprints({}) == {}


def test_a_sum_worked_out_by_hand():
    # 3 at index 0 and 5 at index 1; the finaliser maps 0 to 0
    total = mixed(3 + mixed(0)) + mixed(5 + mixed(1) & MASK)
    assert only(jnp.array([3, 5], jnp.int32)) == f"int32[2] {total & MASK:08x}"
    assert mixed(0) == 0
    assert only(jnp.float32(1.0)) == f"float32[] {mixed(0x3F800000):08x}"  # the bits of 1.0
    assert only(jnp.array([[False], [False]])) == f"bool[2,1] {mixed(mixed(1)):08x}"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "bfloat16", "int32", "float32", "float8_e4m3fn"])
def test_every_single_bit_changes_the_sum(dtype):
    bits = jnp.dtype(dtype).itemsize * 8
    raw = np.random.default_rng(0).integers(0, 2**bits, 12).astype(f"uint{bits}")

    def mark(words):
        return only(jax.lax.bitcast_convert_type(jnp.asarray(words).reshape(3, 4), jnp.dtype(dtype)))

    whole = mark(raw)
    for index in (0, 5, 11):
        for bit in range(bits):
            flipped = raw.copy()
            flipped[index] ^= np.array(1 << bit, raw.dtype)
            assert mark(flipped) != whole


@pytest.mark.usefixtures("x64")
def test_both_halves_of_a_64_bit_number_count():
    words = (np.arange(6) + 0.1).view(np.uint64)
    flips = [words ^ np.array([0, 0, 0, 1 << bit, 0, 0], np.uint64) for bit in range(64)]
    assert len({only(jnp.asarray(x.view(np.float64))) for x in [words, *flips]}) == 65


def test_signed_zero_nan_payload_order_shape_and_dtype_count():
    x = np.array([0.0, 1.0, np.nan], np.float32)
    payload = (x.view(np.uint32) ^ np.array([0, 0, 1], np.uint32)).view(np.float32)
    others = [np.array([-0.0, 1, np.nan], np.float32), payload, x[::-1].copy(), x[None], x.view(np.int32)]
    others += [np.array([-0.0, -1, np.nan], np.float32)]  # two sign bits, which would cancel in a plain weighted sum
    assert len({only(jnp.asarray(y)) for y in [x, *others]}) == 7


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1, 1), (2, 2, 1, 1, 2), (1, 1, 2, 2, 2), (1, 4, 1, 1, 2)])
def test_no_layout_changes_it(sizes):
    rng = np.random.default_rng(1)
    host = {
        "a": rng.normal(size=(16, 8)).astype(np.float32),
        "b": rng.integers(0, 9, 8, np.int32),
        "c": np.float32(2.5),
        "empty": np.zeros((0, 4), np.float32),
    }
    names = dict(zip(("data", "fsdp", "expert", "context", "tensor"), sizes, strict=True))
    mesh = make_mesh(MeshConfig(**names))
    specs = {"a": PartitionSpec(("data", "fsdp"), "tensor"), "b": PartitionSpec(("context", "expert"))}
    with jax.set_mesh(mesh):
        placed = {
            name: jax.device_put(x, NamedSharding(mesh, specs.get(name, PartitionSpec()))) for name, x in host.items()
        }
        found = fingerprints(placed)
    assert found == fingerprints(host)
