"""Muon: momentum whose matrices are orthogonalised."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec, reshard

from gptjax.types import Params

_MOMENTUM, _NEWTON_SCHULZ_STEPS, _COEFFICIENTS = 0.95, 5, (3.4445, -4.7750, 2.0315)
_REDUCED = {"DNH": 1, "DKH": 1, "NHD": 2, "DF": 1, "FD": 1, "DE": 1}  # how many leading dims the matrix multiplies away


def scale_by_muon(letters: Params) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised matrix by matrix, scaled to the size of an Adam update (RMS 0.2).

    The momentum is stored in the layout of its parameter; each matrix is gathered while it is orthogonalised.

    Args:
        letters: dimensions of each parameter, "LDNH" and the like; leading L and E count matrices.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; scale from Liu et al. 2025,
    arXiv:2502.16982, section 2.2.
    """

    def update(updates: Params, params: Params | None = None) -> Params:
        del params
        return jax.tree.map(lambda letter, x: _orthogonalised_leaf(x, letter), letters, updates)

    return optax.chain(optax.trace(_MOMENTUM, nesterov=True), optax.stateless(update))


def orthogonalised(x_LAB: jax.Array) -> jax.Array:
    """Each matrix with its singular values pushed near 1 (between about 0.7 and 1.2)."""
    a, b, c = _COEFFICIENTS
    tall = x_LAB.shape[1] > x_LAB.shape[2]
    x_LAB = jnp.swapaxes(x_LAB, 1, 2) if tall else x_LAB  # the products below are of the shorter side, squared
    x_LAB = x_LAB / (jnp.sqrt(jnp.sum(jnp.square(x_LAB), axis=(1, 2), keepdims=True)) + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram_LAA = jnp.einsum("LAB,LCB->LAC", x_LAB, x_LAB)
        polynomial_LAA = b * gram_LAA + c * jnp.einsum("LAB,LBC->LAC", gram_LAA, gram_LAA)
        x_LAB = a * x_LAB + jnp.einsum("LAB,LBC->LAC", polynomial_LAA, x_LAB)
    return jnp.swapaxes(x_LAB, 1, 2) if tall else x_LAB


def _orthogonalised_leaf(x: Any, letters: str) -> Any:
    if isinstance(x, optax.MaskedNode):
        return x
    matrix = letters.removeprefix("L").removeprefix("E")
    first = len(letters) - len(matrix)
    number, rows = (math.prod(sizes) for sizes in (x.shape[:first], x.shape[first : first + _REDUCED[matrix]]))
    whole = reshard(x, PartitionSpec(*(None,) * x.ndim))
    matrices_LAB = whole.reshape(number, rows, -1)
    scale = 0.2 * max(matrices_LAB.shape[1:]) ** 0.5
    return reshard((scale * orthogonalised(matrices_LAB)).reshape(x.shape), jax.typeof(x).sharding.spec)
