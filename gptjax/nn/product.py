"""Products of activations and weights: in full, or of 8-bit numbers with a scale per channel (qwix).

Forward and towards the activations, both operands are quantised; the gradient of the weights, whose sum runs over all
tokens, is a full product: SwitchBack (Wortsman et al. 2023, arXiv:2304.13013, section 2.2.1).
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec, get_abstract_mesh, reshard

Matmuls = Literal["full", "int8", "fp8"]
SAVED = "product"  # name of results, for rematerialisation policies: of quantised products, of sums that were open


class _Types(NamedTuple):
    """What operands and incoming gradients become, and which of qwix's ways finds their scales."""

    operand: Any
    gradient: Any
    calibration: str


_TYPES = {
    # the largest number becomes 127, not qwix's 127.5: that lies between two integers, and rounding would decide
    "int8": _Types(jnp.int8, jnp.int8, f"absmax,{127.5 / 127}"),
    # gradients: more range, fewer digits (Micikevicius et al. 2022, arXiv:2209.05433, section 3)
    "fp8": _Types(jnp.float8_e4m3fn, jnp.float8_e5m2, "absmax"),
}


def product(equation: str, x: jax.Array, w: jax.Array, spec: PartitionSpec, matmuls: Matmuls) -> jax.Array:
    """The einsum of activations and weights, laid out as without quantisation, in both directions.

    A quantised operand is q * scale, scale = max |operand| over the dimensions that are summed / the largest number of
    the 8-bit type (127, 448 or 57,344). That maximum is taken over all devices, so numbers do not depend on how an
    operand is spread.

    Args:
        equation: such as "BTD,DNH->BTNH".
        x: float[B, T, ...], activations.
        w: float[...], weights, whole along the axes that spread the tokens.
        spec: layout of the result; a sum that is to stay open is "unreduced" (see gptjax.nn.gather).
        matmuls: "full", or what both are quantised to: int8, or fp8 (E4M3, incoming gradients E5M2).

    Returns:
        float[B, T, ...], of the dtype of x.

    Raises:
        ValueError: qwix is not installed.
    """
    if matmuls == "full":
        return jnp.einsum(equation, x, w, out_sharding=spec)
    out: jax.Array = _straight_through(equation, matmuls, spec, x, w)
    return out if spec.unreduced else checkpoint_name(out, SAVED)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _straight_through(equation: str, matmuls: str, spec: PartitionSpec, x: jax.Array, w: jax.Array) -> jax.Array:
    """Rounding has the gradient of the identity."""
    operand = _TYPES[matmuls].operand
    return _quantised(equation, (x, w), (operand, operand), matmuls, spec)


def _forward(equation, matmuls, spec, x, w):
    return _straight_through(equation, matmuls, spec, x, w), (x, w)


def _backward(equation, matmuls, spec, kept, g):
    x, w = kept
    terms, result = equation.split("->")
    of_x, of_w = terms.split(",")
    types, x_spec = _TYPES[matmuls], jax.typeof(x).sharding.spec
    open_spec = PartitionSpec(*x_spec.partitions, unreduced=x_spec.reduced)
    kinds = (types.gradient, types.operand)
    dx = _quantised(f"{result},{of_w}->{of_x}", (g, w), kinds, matmuls, open_spec)
    _, full = jax.vjp(lambda w: jnp.einsum(equation, x, w, out_sharding=spec), w)
    return dx, *full(g)


_straight_through.defvjp(_forward, _backward)


def _quantised(
    equation: str,
    operands: tuple[jax.Array, jax.Array],
    kinds: tuple[Any, Any],
    matmuls: str,
    spec: PartitionSpec,
) -> jax.Array:
    """The product alone, which knows no gradient. Sums over devices have the width of the operands, not of int32."""
    qwix = _library(matmuls)
    terms, result = equation.split("->")
    dtype = operands[0].dtype
    numbers, summed = [], set()
    for letters, operand, kind in zip(terms.split(","), operands, kinds, strict=True):
        layout = jax.typeof(operand).sharding.spec.partitions
        for letter, axes in zip(letters, layout, strict=True):
            if letter not in result:
                summed.update((axes,) if isinstance(axes, str) else axes or ())
        channels = [dim for dim, letter in enumerate(letters) if letter in result]
        value = reshard(operand, PartitionSpec(*layout))  # no longer "reduced": no gradient comes this way
        wide = value.astype(jnp.promote_types(dtype, jnp.float32))
        calibration = _TYPES[matmuls].calibration
        numbers.append(qwix.quantize(wide, kind, channelwise_axes=channels, calibration_method=calibration))
    # jax 0.10 cannot lower an open sum out of a shard_map over one device
    left_open = spec.unreduced if get_abstract_mesh().size > 1 else frozenset()

    def local(a, b):
        part = jax.lax.psum(qwix.einsum(equation, a, b).astype(dtype), tuple(sorted(summed - left_open)))
        return jax.lax.pcast(part, tuple(sorted(left_open)), to="unreduced") if left_open else part

    layouts = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tuple(numbers))
    out = jax.shard_map(local, in_specs=layouts, out_specs=PartitionSpec(*spec.partitions, unreduced=left_open))
    return reshard(out(*numbers), spec)


def _library(matmuls: str) -> Any:
    """qwix, which only quantised products need."""
    try:
        import qwix
    except ImportError:
        raise ValueError(f"model.matmuls {matmuls!r} needs qwix: pip install -e '.[quant]' in the repository") from None
    return qwix
