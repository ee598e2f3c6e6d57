"""Normalisation against a plain NumPy transcription."""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.nn.norm import layer_norm, rms_norm


def numbers(*shape):
    return np.random.default_rng(0).normal(1.0, 2.0, shape)


def test_rms_norm_divides_by_the_root_mean_square(x64):
    # (3, 4): mean square 12.5, so 3 / sqrt(12.5) * 2 and 4 / sqrt(12.5) * 1
    found = rms_norm(jnp.asarray([[3.0, 4.0]]), jnp.asarray([2.0, 1.0]), eps=0.0)
    np.testing.assert_allclose(found, [[6 / 12.5**0.5, 4 / 12.5**0.5]], rtol=1e-12)
    x, scale = numbers(2, 3, 8), numbers(8)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * scale
    np.testing.assert_allclose(rms_norm(jnp.asarray(x), jnp.asarray(scale), eps=0.1), expected, rtol=1e-12)


def test_layer_norm_centres_then_divides_by_the_population_deviation(x64):
    # (1, 3): mean 2, variance 1, so (-1, 1) * 2 + 5
    found = layer_norm(jnp.asarray([[1.0, 3.0]]), jnp.full(2, 2.0), jnp.full(2, 5.0), eps=0.0)
    np.testing.assert_allclose(found, [[3.0, 7.0]], rtol=1e-12)
    x, scale, bias = numbers(2, 3, 8), numbers(8), numbers(8) - 3
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1) * scale + bias
    found = layer_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), eps=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_half_precision_inputs_are_normalised_in_float32():
    # 300 squared is 90,000, beyond the largest float16 (65,504)
    large = jnp.full((1, 256), 300.0, jnp.float16)
    found = rms_norm(large, jnp.ones(256), eps=1e-5)
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(found, np.float32), 1.0, rtol=1e-3)


def test_a_constant_row_gives_the_bias_and_a_finite_gradient():
    x, ones = jnp.full((1, 4), 7.0), jnp.ones(4)
    np.testing.assert_array_equal(layer_norm(x, ones, 0.5 * ones, eps=1e-5), np.full((1, 4), 0.5))
    zeros = jnp.zeros((1, 4))
    assert np.isfinite(jax.grad(lambda x: jnp.sum(rms_norm(x, ones, eps=1e-5)))(zeros)).all()
    assert np.isfinite(jax.grad(lambda x: jnp.sum(layer_norm(x, ones, ones, eps=1e-5)))(zeros)).all()
