"""Normalisation over the model width, computed in float32."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: jax.Array, *, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last dimension.

    Args:
        x: float[..., D].
        scale: float[D].
        eps: added to the mean square.

    Returns:
        Array of x's shape and dtype.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rms = jnp.sqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 / rms * _as_last(scale, x32)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float) -> jax.Array:
    """(x - mean) / std * scale + bias over the last dimension.

    Args:
        x: float[..., D].
        scale: float[D].
        bias: float[D].
        eps: added to the variance.

    Returns:
        Array of x's shape and dtype.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (centred / std * _as_last(scale, x32) + _as_last(bias, x32)).astype(x.dtype)


def _as_last(vector: jax.Array, like: jax.Array) -> jax.Array:
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + vector.shape)
