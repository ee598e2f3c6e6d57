"""GRPO's and RLOO's advantages, losses and gradients against TRL's own code on the same random inputs, in float64."""

from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.groups import (
    aggregated,
    group_advantages,
    kl_token_loss,
    leave_one_out_advantages,
)
from gptjax.losses.policy import clipped_surrogate, kl_estimates

torch = pytest.importorskip("torch")
grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
rloo_trainer = pytest.importorskip("trl.trainer.rloo_trainer")
excerpt = pytest.importorskip("excerpt").excerpt

pytestmark = pytest.mark.usefixtures("x64")
GROUPS, SIZE, RESPONSE = 4, 5, 6
SCORED = np.array([5, 3, 2, 1])  # n / (n - 1), which TRL computes in float32, is exact there
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    rows = GROUPS * SIZE
    lengths = rng.integers(1, RESPONSE + 1, rows)
    logp = rng.normal(-2, 0.5, (rows, RESPONSE))
    scores = rng.normal(0, 1, (GROUPS, SIZE))
    return SimpleNamespace(
        logp=logp,
        logp_old=logp + rng.normal(0, 0.3, logp.shape),
        logp_ref=logp + rng.normal(0, 0.3, logp.shape),
        advantages=rng.normal(0, 1, rows),
        mask=np.arange(RESPONSE) < lengths[:, None],
        scores=np.where(rng.permuted(np.arange(SIZE) < SCORED[:, None], axis=1), scores, np.nan),
    )


def trl_advantages(trainer, drawn, scores=None, **settings):
    """Advantages [B, C] of TRL's lines between scoring and logging; the scores are those of one reward function."""
    scores = drawn.scores if scores is None else scores
    lines = excerpt(
        trainer._generate_and_score_completions,
        "unscorable_mask = torch.isnan(rewards_per_func).all(dim=1)",
        "advantages = torch.nan_to_num(advantages, nan=0.0)",
    )
    found = lines(
        self=SimpleNamespace(reward_weights=torch.ones(1), **settings),
        rewards_per_func=torch.tensor(scores.reshape(-1, 1)),
        device="cpu",
        num_generations=SIZE,
        gather=lambda x: x,
        old_per_token_logps=torch.tensor(drawn.logp_old),
        ref_per_token_logps=torch.tensor(drawn.logp_ref),
        completion_mask=torch.tensor(drawn.mask.astype(int)),
    )
    return found["advantages"].numpy().reshape(scores.shape)


@pytest.mark.parametrize("scale", [True, False])
def test_grpo_advantages_equal_trl_with_unscored_answers(drawn, scale):
    """TRL: the sample's deviation plus 1e-4."""
    drawn.scores[1] = np.where(np.isnan(drawn.scores[1]), np.nan, 0.25)  # nothing to learn from
    settings = {"multi_objective_aggregation": "sum_then_normalize", "scale_rewards": "group" if scale else "none"}
    theirs = trl_advantages(grpo_trainer.GRPOTrainer, drawn, **settings)
    ours, counted = group_advantages(drawn.scores, np.isfinite(drawn.scores), scale=scale, ddof=1, eps=1e-4)
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    assert np.all(np.asarray(ours)[1] == 0)
    assert np.array_equal(np.sum(counted, axis=1), [5, 3, 2, 0])  # an answer alone in its group teaches nothing


def test_grpo_advantages_with_the_deviation_of_the_population_are_larger_than_trl(drawn):
    scores = np.random.default_rng(1).normal(0, 1, (GROUPS, SIZE))
    settings = {"multi_objective_aggregation": "sum_then_normalize", "scale_rewards": "group"}
    theirs = trl_advantages(grpo_trainer.GRPOTrainer, drawn, scores, **settings)
    ours, _ = group_advantages(scores, np.isfinite(scores), ddof=0, eps=1e-4)
    sample, population = (np.std(scores, axis=1, ddof=ddof, keepdims=True) + 1e-4 for ddof in (1, 0))
    np.testing.assert_allclose(ours, theirs * sample / population, **CLOSE)


def test_rloo_advantages_equal_trl_with_kl_in_the_reward_and_unscored_answers(drawn):
    settings = {"beta": 0.3, "reward_clip_range": None, "normalize_advantages": False}
    theirs = trl_advantages(rloo_trainer.RLOOTrainer, drawn, **settings)
    k1 = jnp.sum(kl_estimates(drawn.logp_old, drawn.logp_ref, drawn.mask)[0], axis=1).reshape(GROUPS, SIZE)
    ours, _ = leave_one_out_advantages(drawn.scores - 0.3 * k1, np.isfinite(drawn.scores))
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    assert np.abs(theirs).max() > 0.5


def trl_loss(trainer, drawn, **settings):
    """TRL's loss, its gradient in the log-probabilities, and its metrics."""
    logp = torch.tensor(drawn.logp, requires_grad=True)
    mask = torch.tensor(drawn.mask.astype(float))
    identity = {"gather": lambda x: x, "reduce": lambda x, reduction: x, "num_processes": 1}
    light = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(mask), None),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(**identity),
        args=SimpleNamespace(
            delta=None, steps_per_generation=1, use_bias_correction_kl=settings.pop("use_bias_correction_kl", False)
        ),
        _metrics={"train": defaultdict(list)},
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=RESPONSE,
        _entropy_bonus_enabled=False,
        **settings,
    )
    nothing = torch.zeros((len(drawn.mask), 0), dtype=int)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros(drawn.mask.shape, dtype=int),
        "completion_mask": mask,
        "advantages": torch.tensor(drawn.advantages),
        "old_per_token_logps": torch.tensor(drawn.logp_old),
        "old_logps": (torch.tensor(drawn.logp_old) * mask).sum(1),
        "ref_per_token_logps": torch.tensor(drawn.logp_ref),
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer._compute_loss(light, None, inputs)
    loss.backward()
    metrics = {name: values[0] for name, values in light._metrics["train"].items()}
    return float(loss.detach()), logp.grad.numpy(), metrics


@pytest.mark.parametrize(
    ("theirs", "ours"), [("grpo", "sequence"), ("bnpo", "token"), ("dapo", "token"), ("dr_grpo", "constant")]
)
@pytest.mark.parametrize("kl", [None, "k3_biased", "k3_times_ratio"])
def test_grpo_losses_and_gradients_equal_trl(drawn, theirs, ours, kl):
    beta = 0.0 if kl is None else 0.4
    loss, grad, metrics = trl_loss(
        grpo_trainer.GRPOTrainer,
        drawn,
        loss_type=theirs,
        beta=beta,
        use_bias_correction_kl=kl == "k3_times_ratio",
    )

    def loss_fn(logp):
        advantages = jnp.broadcast_to(drawn.advantages[:, None], logp.shape)
        token_loss, aux = clipped_surrogate(logp, drawn.logp_old, advantages, drawn.mask, clip_low=0.2, clip_high=0.28)
        if kl is not None:
            token_loss += beta * kl_token_loss(logp, drawn.logp_old, drawn.logp_ref, drawn.mask, kind=kl)
        loss_sum, count = aggregated(token_loss, drawn.mask, ours, longest=RESPONSE)
        return loss_sum / count, aux

    (value, aux), ours_grad = jax.value_and_grad(loss_fn, has_aux=True)(jnp.asarray(drawn.logp))
    np.testing.assert_allclose(value, loss, **CLOSE)
    np.testing.assert_allclose(ours_grad, grad, **CLOSE)
    for name, side in [("clip_ratio/low_mean", "clipped_low"), ("clip_ratio/high_mean", "clipped_high")]:
        assert aux[side] > 0
        np.testing.assert_allclose(aux[side] / drawn.mask.sum(), metrics[name], rtol=1e-6)


def test_rloo_loss_and_gradient_equal_trl(drawn):
    drawn.logp_old = drawn.logp + (drawn.logp_old - drawn.logp) / 2  # ratios of whole answers on both sides of the clip
    loss, grad, metrics = trl_loss(rloo_trainer.RLOOTrainer, drawn)

    def loss_fn(logp):
        answers, answers_old = (jnp.sum(jnp.where(drawn.mask, x, 0.0), axis=1) for x in (logp, drawn.logp_old))
        everything = jnp.ones(len(drawn.mask), bool)
        answer_loss, aux = clipped_surrogate(
            answers, answers_old, drawn.advantages, everything, clip_low=0.2, clip_high=0.28
        )
        return jnp.mean(answer_loss), aux

    (value, aux), ours_grad = jax.value_and_grad(loss_fn, has_aux=True)(jnp.asarray(drawn.logp))
    np.testing.assert_allclose(value, loss, **CLOSE)
    np.testing.assert_allclose(ours_grad, grad, **CLOSE)
    assert 0 < metrics["clip_ratio/region_mean"] < 1
    assert aux["clipped_low"] + aux["clipped_high"] == round(metrics["clip_ratio/region_mean"] * len(drawn.mask))
