"""Schedules by their worked values, Muon by its singular values, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN

from gptjax.optim.muon import orthogonalised
from gptjax.optim.optimizer import OptimizerConfig, learning_rate, optimizer
from gptjax.train.ppo_config import PpoConfig

GOLDEN = GOLDEN["SFT3_schedules"]


def close(lr, step, wanted, dtype):
    np.testing.assert_allclose(lr(jnp.asarray(int(step))), wanted, rtol=1e-9 if dtype == "float64" else 2e-6)


def test_fine_tuning_decays_by_a_cosine_to_a_tenth(dtype):
    # lr(t) = peak * (0.1 + 0.9 * (1 + cos(pi t / steps)) / 2), no warm-up
    peak, steps = GOLDEN["inputs"]["sft_peak"], GOLDEN["inputs"]["sft_steps"]
    lr = learning_rate(OptimizerConfig(peak_lr=peak, schedule="cosine", final_fraction=0.1), steps)
    for step, wanted in GOLDEN["expected"]["sft_lr"].items():
        close(lr, step, wanted, dtype)


def test_ppo_warms_up_from_a_tenth_and_stays(dtype):
    # lr(t) = peak * (0.1 + 0.9 * t / 10) up to t = 10, then the peak
    peak, warmup = GOLDEN["inputs"]["ppo_peak"], GOLDEN["inputs"]["ppo_warmup_iters"]
    config = OptimizerConfig(peak_lr=peak, schedule="constant", warmup_steps=warmup, start_fraction=0.1)
    lr = learning_rate(config, GOLDEN["expected"]["ppo_iterations_256k"])
    for step, wanted in GOLDEN["expected"]["ppo_lr"].items():
        close(lr, step, wanted, dtype)


def test_the_sizes_of_instructgpt_follow_from_each_other():
    # 64 prompts of at most C(9, 2) = 36 pairs; 256,000 episodes in rollouts of 512, each cut into minibatches of 64 and
    # learnt once; 8 pre-training examples for each episode
    expected, updates = GOLDEN["expected"], PpoConfig(minibatches=512 // 64, epochs=1).updates
    assert expected["rm_max_comparisons_per_batch"] == 64 * 36
    assert expected["ppo_iterations_256k"] == 256_000 // 512
    assert expected["minibatch_updates"] == updates * 256_000 // 512
    assert expected["pretrain_examples"] == 8 * 256_000


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("linear", {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0}), ("wsd", {10: 1.0, 79: 1.0, 80: 1.0, 90: 0.5, 100: 0.0})],
)
def test_a_schedule_reaches_its_peak_after_warm_up_and_its_floor_at_the_end(name, wanted, x64):
    # 100 steps, 10 of them warm-up: linear falls over the other 90, wsd over the last 20
    lr = learning_rate(OptimizerConfig(peak_lr=1.0, schedule=name, warmup_steps=10, final_fraction=0.0), 100)
    np.testing.assert_allclose([lr(jnp.asarray(step)) for step in wanted], list(wanted.values()), atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 6, 20), (3, 20, 6)], ids=str)
def test_muon_pushes_singular_values_near_one(shape):
    # U diag(s) V' with s from 0.05 to 1 becomes U diag(about 1) V'
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    s = np.linspace(0.05, 1.0, min(shape[1:]))
    found = orthogonalised(jnp.asarray((u * s) @ v, jnp.float32))
    assert found.shape == shape
    values = np.linalg.svd(np.asarray(found), compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    np.testing.assert_array_less(0.0, np.einsum("lka,lab,lkb->lk", u.swapaxes(1, 2), np.asarray(found), v))


def test_muon_does_not_depend_on_the_scale_of_the_gradient():
    x_LAB = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 7)), jnp.float32)
    np.testing.assert_allclose(orthogonalised(1000 * x_LAB), orthogonalised(x_LAB), atol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_matrices_decay(name, one_device):
    # gradient 0: w -> w - lr * decay * w = 1 - 0.1 * 0.5 for matrices, w for everything else
    roles = {"w": "matrix", "b": "bias", "s": "norm", "e": "embedding"}
    letters = {"w": "LDF", "b": "LF", "s": "D", "e": "VD"}
    params = {"w": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 4)), "s": jnp.ones(3), "e": jnp.ones((5, 3))}
    tx = optimizer(OptimizerConfig(name=name, peak_lr=0.1, schedule="constant", weight_decay=0.5), 9, roles, letters)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for part, wanted in {"w": -0.05, "b": 0.0, "s": 0.0, "e": 0.0}.items():
        np.testing.assert_allclose(updates[part], np.full(params[part].shape, wanted), atol=1e-7)


def test_the_first_adam_step_has_the_size_of_the_learning_rate():
    # m / (1 - b1) = g, v / (1 - b2) = g^2: the update is -lr * g / |g|, whatever clipping does to |g|
    roles, letters = {"b": "bias"}, {"b": "D"}
    config = OptimizerConfig(peak_lr=0.1, schedule="constant", eps=1e-12)
    tx, params = optimizer(config, 9, roles, letters), {"b": jnp.zeros(3)}
    updates, _ = tx.update({"b": jnp.asarray([30.0, -0.4, 5.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["b"], [-0.1, 0.1, -0.1], rtol=1e-5)
