"""Adam with TensorFlow's epsilon, by the worked case, beside the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_cases import GOLDEN

from gptjax.optim.adam import scale_by_adam_tf
from gptjax.optim.optimizer import OptimizerConfig, optimizer

CASE = GOLDEN["PPO10_adam_eps_ema"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("mode", "column"), [("paper", 0), ("tf", 1)])
def test_three_steps_of_a_constant_gradient(mode, column, dtype):
    inputs, expected = CASE["inputs"], CASE["expected"]["update_alg1_then_tf_for_steps_1_2_3"]
    config = OptimizerConfig(
        peak_lr=inputs["lr"], schedule="constant", b1=inputs["b1"], b2=inputs["b2"], eps=inputs["eps"], eps_mode=mode,
        clip_norm=None,
    )  # fmt: skip
    with jax.enable_x64(dtype == "float64"):
        tx = optimizer(config, 3, {"w": "bias"}, {"w": "D"})
        params = {"w": jnp.zeros(3, dtype)}
        state, grads = tx.init(params), {"w": jnp.asarray(inputs["constant_gradients"], dtype)}
        for step in range(3):
            updates, state = tx.update(grads, state, params)
            right = np.array([steps[step][column] for steps in expected.values()])
            wrong = np.array([steps[step][1 - column] for steps in expected.values()])
            np.testing.assert_allclose(-updates["w"], right, rtol=1e-9 if dtype == "float64" else 3e-5)
            assert not np.allclose(-updates["w"][1:], wrong[1:], rtol=0.3, atol=0)


def test_the_two_forms_differ_only_in_epsilon(x64):
    # eps / sqrt(1 - b2^t) in the paper's form is eps in TensorFlow's; here at t = 1
    grads, params = {"w": jnp.asarray([0.3, -1e-4])}, {"w": jnp.zeros(2)}
    tf = scale_by_adam_tf(b1=0.9, b2=0.99, eps=1e-3)
    paper = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-3 / 0.1)
    ours, theirs = (tx.update(grads, tx.init(params), params)[0]["w"] for tx in (tf, paper))
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)
