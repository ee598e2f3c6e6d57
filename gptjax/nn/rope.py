"""Rotary position embedding."""

import jax
import jax.numpy as jnp


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, *, theta: float) -> jax.Array:
    """Rotate pairs (h, h + H/2) of each head by an angle that grows with the position.

    Args:
        x_BTNH: float[B, T, N, H], queries or keys; H even.
        positions_BT: i32[B, T], position within the document.
        theta: base of the geometric series of wavelengths.

    Returns:
        Array of x's shape and dtype; dot products depend on position differences only.

    Raises:
        ValueError: H is odd.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2.2 (halves paired as in GPT-NeoX and Llama).
    """
    width = x_BTNH.shape[-1]
    if width % 2:
        raise ValueError(f"rotary positions need an even head width, got {width}")
    dtype = jnp.promote_types(x_BTNH.dtype, jnp.float32)
    frequency_H = theta ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    angle_BT1H = positions_BT[:, :, None, None].astype(dtype) * frequency_H.reshape(1, 1, 1, -1)
    cos, sin = jnp.cos(angle_BT1H), jnp.sin(angle_BT1H)
    cos_BT1H, sin_BT1H = (jnp.concatenate(halves, axis=-1) for halves in ((cos, cos), (-sin, sin)))
    swapped_BTNH = jnp.roll(x_BTNH, width // 2, axis=-1)  # before the cast: what is kept for it is half as large
    return (x_BTNH.astype(dtype) * cos_BT1H + swapped_BTNH.astype(dtype) * sin_BT1H).astype(x_BTNH.dtype)
