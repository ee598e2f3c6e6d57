"""Regression on ratings from 1 to 7, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.rating import rating_loss


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squared_errors_are_summed_with_their_weights(dtype):
    # scores 0 predict 4: errors -3 (weight 1) and 2 (weight 2), the third is not rated: 9 + 2 * 4 = 17, 3 + 2 * 2 = 7
    with jax.enable_x64(dtype == "float64"):
        ratings_BC, weights_BC = (jnp.asarray(x, dtype) for x in ([[7.0, 2.0, 0.0]], [[1.0, 2.0, 0.0]]))

        def loss(scores_BC):
            total, weight, aux = rating_loss(scores_BC, ratings_BC, weights_BC)
            return total, (weight, aux)

        (total, (weight, aux)), gradient_BC = jax.value_and_grad(loss, has_aux=True)(
            jnp.asarray([[0.0, 0.0, jnp.nan]], dtype)
        )
        assert (float(total), float(weight), float(aux["absolute"])) == (17.0, 3.0, 7.0)
        assert (int(aux["rated"]), int(aux["not_finite"])) == (2, 0)
        # 2 * weight * error: -6 and 8; nothing where there is no rating
        np.testing.assert_array_equal(gradient_BC, [[-6.0, 8.0, 0.0]])


def test_a_score_that_is_not_finite_is_left_out_and_counted():
    ratings_BC, weights_BC = jnp.asarray([[5.0, 5.0]]), jnp.ones((1, 2))
    total, weight, aux = rating_loss(jnp.asarray([[2.0, jnp.inf]]), ratings_BC, weights_BC)
    assert (float(total), float(weight), int(aux["not_finite"])) == (1.0, 1.0, 1)


def test_no_ratings_have_weight_0():
    total, weight, _ = rating_loss(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    assert (float(total), float(weight)) == (0.0, 0.0)
