"""Trees of arrays: names and layouts of their leaves, and a fingerprint of their bits that no layout changes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax.memory import on_device


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by their path, such as "params.blocks.wq_DNH", in the order of `jax.tree.leaves`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def fingerprints(tree: Any) -> dict[str, str]:
    """What each leaf is, bit for bit: dtype, shape and a 32-bit sum of its hashed elements.

    The sum is computed where the array lies, in one jitted call for the whole tree. Adding integers modulo 2^32 gives
    the same in any order, so neither mesh nor number of processes matters. Each element is hashed with its position by
    a bijection, so a change of one element of up to 32 bits always changes the sum, and any other change all but one
    time in 2^32.

    Args:
        tree: arrays on the mesh, of booleans or of real numbers of at most 64 bits.

    Returns:
        By path, such as "float32[64,32] 0c51a7f3".
    """
    leaves = named_leaves(tree)
    sums = np.asarray(_sums(list(leaves.values()))) if leaves else ()
    return {name: f"{layout(leaf)} {total:08x}" for (name, leaf), total in zip(leaves.items(), sums, strict=True)}


def layout(leaf: Any) -> str:
    """Dtype and shape of an array or of what stands for one, such as "float32[64,32]"."""
    return f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    """uint32[leaves]."""
    return jnp.stack([_hashed_sum(leaf) for leaf in on_device(leaves)])


def _hashed_sum(x: jax.Array) -> jax.Array:
    """uint32[]: the sum of the elements' hashes, modulo 2^32."""
    sharding = jax.typeof(x).sharding
    index = jnp.zeros(x.shape, jnp.uint32, out_sharding=sharding)
    for dim in range(x.ndim):
        stride = jnp.uint32(math.prod(x.shape[dim + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim, out_sharding=sharding) * stride
    hashed = _mixed(index)
    for word in _words(x):
        hashed = _mixed(hashed + word)
    return jnp.sum(hashed, dtype=jnp.uint32)


def _words(x: jax.Array) -> list[jax.Array]:
    """The bits of each element as one 32-bit word, or as two."""
    if x.dtype == jnp.bool_:
        return [x.astype(jnp.uint32)]
    bits = (jnp.finfo if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo)(x.dtype).bits
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))
    return [(words >> shift).astype(jnp.uint32) for shift in range(0, bits, 32)]


def _mixed(word: jax.Array) -> jax.Array:
    """A bijection of 32-bit words whose output looks random.

    Source: Appleby, MurmurHash3's finaliser fmix32, https://github.com/aappleby/smhasher (public domain).
    """
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def outcome(function: Callable[..., Any], *arguments: Any, mesh: Mesh) -> Any:
    """What a function gives, as shapes on this mesh, in the layouts and memories that tracing it found."""
    traced = jax.jit(function).trace(*arguments)
    # jax.eval_shape would lose the memory
    structure = jax.tree.structure(traced.out_info)
    return placed(jax.tree.unflatten(structure, traced.jaxpr.out_avals), mesh)


def placed(tree: Any, mesh: Mesh) -> Any:
    """Shapes with their layouts and memories, on this mesh; what has no layout is on every device."""

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec() if leaf.sharding is None else leaf.sharding.spec
        on_host = getattr(leaf, "memory_space", None) == jax.memory.Space.Host
        sharding = NamedSharding(mesh, spec, memory_kind="pinned_host" if on_host else None)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree)
