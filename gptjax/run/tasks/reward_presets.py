"""Reward-model settings of published runs; what a paper leaves open keeps gptjax's default."""

from dataclasses import dataclass

from gptjax.optim.optimizer import OptimizerConfig
from gptjax.train.reward import RewardConfig


@dataclass(frozen=True, kw_only=True)
class RewardPreset:
    """reward: objective and normalisation.  batch_size: prompts.  epochs: passes over the comparisons."""

    reward: RewardConfig
    optimizer: OptimizerConfig
    batch_size: int
    epochs: int = 1

    def steps(self, prompts: int) -> int:
        """Updates that make up the preset's epochs over this many prompts; at least one."""
        return max(1, self.epochs * prompts // self.batch_size)


PRESETS = {
    # Ouyang et al. 2022, arXiv:2203.02155, appendix C.2: batch 64 counts prompts; Adam as for all of its models.
    "instructgpt": RewardPreset(
        reward=RewardConfig(),
        optimizer=OptimizerConfig(peak_lr=9e-6, schedule="cosine", final_fraction=0.1, b1=0.9, b2=0.95),
        batch_size=64,
    ),
    # Ziegler et al. 2019, arXiv:1909.08593, and lm-human-preferences (core.py, minimize): the best of four, linear to
    # zero, TensorFlow's Adam with epsilon 1e-5, nothing clipped.
    "ziegler": RewardPreset(
        reward=RewardConfig(objective="choice", normalisation="reference"),
        optimizer=OptimizerConfig(
            peak_lr=5e-5, schedule="linear", final_fraction=0.0, b2=0.999, eps=1e-5, eps_mode="tf", clip_norm=None
        ),
        batch_size=32,
    ),
    # Huang et al. 2024, arXiv:2403.17031: AdamW with epsilon 1e-5 and PyTorch's moments, cosine, nothing clipped.
    "n_plus": RewardPreset(
        reward=RewardConfig(),
        optimizer=OptimizerConfig(
            peak_lr=3e-6, schedule="cosine", final_fraction=0.0, b2=0.999, eps=1e-5, clip_norm=None
        ),
        batch_size=64,
    ),
}
