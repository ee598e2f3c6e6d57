"""The presets against the published figures, written out."""

import pytest

from gptjax.run.tasks.ppo_presets import instructgpt, n_plus, ziegler

COMMON = {"clip": 0.2, "value_clip": 0.2, "discount": 1.0}
PPO = {
    instructgpt: COMMON
    | {"minibatches": 8, "epochs": 1, "kl_coefficient": 0.02, "kl_target": None, "temperature": 1.0}
    | {"average_decay": 0.992, "ptx_coefficient": 27.8, "ptx_rows": 8, "value_model": "separate"},
    ziegler: COMMON
    | {"minibatches": 1, "epochs": 4, "kl_coefficient": 0.15, "kl_target": 6.0, "kl_horizon": 10_000, "trace": 0.95}
    | {"temperature": 0.7, "value_model": "head", "value_coefficient": 0.1, "missing_end_score": -1.0}
    | {"whiten_rewards": "minibatch", "whiten_advantages": "minibatch", "ptx_coefficient": 0.0},
    n_plus: COMMON
    | {"minibatches": 1, "epochs": 4, "kl_coefficient": 0.05, "kl_target": None, "trace": 0.95, "temperature": 0.7}
    | {"value_model": "separate", "value_coefficient": 0.1, "missing_end_score": -1.0, "whiten_rewards": None},
}
OPTIMIZER = {
    instructgpt: {"schedule": "constant", "warmup_steps": 80, "start_fraction": 0.1, "b1": 0.9, "b2": 0.95},
    ziegler: {"peak_lr": 1e-5, "schedule": "linear", "final_fraction": 0.0, "eps": 1e-5, "eps_mode": "tf"},
    n_plus: {"peak_lr": 3e-6, "schedule": "linear", "final_fraction": 0.0, "eps": 1e-5, "eps_mode": "paper"},
}
STEPS = {instructgpt: 4000, ziegler: 7812, n_plus: 7812}  # 500 x 8; 1,000,000 // 512 rollouts x 4


@pytest.mark.parametrize("preset", PPO, ids=lambda preset: preset.__name__)
def test_a_preset_has_the_published_figures(preset):
    found = preset()
    assert {name: getattr(found.ppo, name) for name in PPO[preset]} == PPO[preset]
    assert {name: getattr(found.optimizer, name) for name in OPTIMIZER[preset]} == OPTIMIZER[preset]
    assert found.batch_size == 512
    assert (found.optimizer.clip_norm is None) == (preset is not instructgpt)  # neither repository clips
    assert found.steps == STEPS[preset]
    assert found.steps % found.ppo.updates == 0


def test_instructgpt_has_a_rate_for_the_value_model_and_one_in_the_range_that_was_tried_for_the_policy():
    preset = instructgpt()
    assert preset.value_optimizer is not None
    assert preset.value_optimizer.peak_lr == 9e-6
    assert 2.55e-6 <= preset.optimizer.peak_lr <= 8.05e-6
