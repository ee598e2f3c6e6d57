"""Rotary positions against a transcription with complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.nn.rope import rotate

WIDTH, THETA = 6, 100.0


def by_complex_numbers(x_BTNH, positions_BT):
    half = WIDTH // 2
    z = x_BTNH[..., :half] + 1j * x_BTNH[..., half:]
    frequency = THETA ** (-2 * np.arange(half) / WIDTH)
    z = z * np.exp(1j * positions_BT[:, :, None, None] * frequency)
    return np.concatenate([z.real, z.imag], axis=-1)


def test_rotation_multiplies_by_a_complex_phase(x64):
    x_BTNH = np.random.default_rng(0).normal(size=(2, 5, 3, WIDTH))
    positions_BT = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 7, 900]])
    found = rotate(jnp.asarray(x_BTNH), jnp.asarray(positions_BT), theta=THETA)
    np.testing.assert_allclose(found, by_complex_numbers(x_BTNH, positions_BT), atol=1e-12)
    np.testing.assert_array_equal(found[:, 0], x_BTNH[:, 0])


def test_later_pairs_turn_more_slowly():
    # width 4, theta 100: pair 0 turns by 1 a position, pair 1 by 100 ** (-2 / 4) = 0.1; at position 3 by 3 and 0.3
    found = rotate(jnp.asarray([[[[1.0, 1.0, 0.0, 0.0]]]]), jnp.asarray([[3]]), theta=100.0)
    expected = [np.cos(3), np.cos(0.3), np.sin(3), np.sin(0.3)]
    np.testing.assert_allclose(found[0, 0, 0], expected, atol=1e-6)


def test_dot_products_depend_on_position_differences_only(x64):
    rng = np.random.default_rng(2)
    q, k = (jnp.asarray(np.broadcast_to(rng.normal(size=(1, 1, 1, WIDTH)), (1, 4, 1, WIDTH))) for _ in range(2))
    at = [0, 3, 50, 900]
    dots = [
        np.sum(
            np.asarray(rotate(q, jnp.asarray([at]), theta=THETA))
            * np.asarray(rotate(k, jnp.asarray([at]) + distance, theta=THETA)),
            axis=-1,
        ).ravel()
        for distance in (0, 5)
    ]
    for same in dots:
        np.testing.assert_allclose(same, same[0], rtol=1e-9)
    assert abs(dots[0][0] - dots[1][0]) > 0.1


def test_an_odd_head_width_is_refused():
    with pytest.raises(ValueError, match="even head width, got 3"):
        rotate(jnp.zeros((1, 1, 1, 3)), jnp.zeros((1, 1), int), theta=THETA)
