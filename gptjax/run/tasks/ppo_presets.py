"""PPO's settings as three publications used them; lengths of prompts and responses are the task's own.

What a publication does not state keeps the default of the class and is named in the function's docstring.
"""

from dataclasses import dataclass

from gptjax.optim.optimizer import OptimizerConfig
from gptjax.train.ppo_config import PpoConfig

_PROMPTS = 512  # of a rollout, in all three


@dataclass(frozen=True, kw_only=True)
class PpoPreset:
    """ppo and optimizer (of the policy) belong into an experiment, batch_size are its prompts, steps its updates.

    value_optimizer: of the separate value model; None: one optimizer for both, or the same settings.
    """

    ppo: PpoConfig
    optimizer: OptimizerConfig
    value_optimizer: OptimizerConfig | None = None
    batch_size: int = _PROMPTS
    steps: int


def instructgpt() -> PpoPreset:
    """PPO-ptx of InstructGPT, 1.3B: 256,000 episodes in 500 rollouts.

    Not stated there: policy learning rate (this is the middle of the range that was tried, and the largest that stayed
    stable without ptx), lambda, value clip, Adam epsilon, normalisation of the pre-training loss (here: token mean).

    Source: Ouyang et al. 2022, arXiv:2203.02155, appendix C.4.
    """
    ppo = PpoConfig(
        minibatches=8,
        epochs=1,
        temperature=1.0,
        kl_coefficient=0.02,
        discount=1.0,
        clip=0.2,
        average_decay=0.992,
        ptx_coefficient=27.8,
        ptx_rows=8,
    )
    return PpoPreset(
        ppo=ppo,
        optimizer=_instructgpt_optimizer(8.05e-6, ppo),
        value_optimizer=_instructgpt_optimizer(9e-6, ppo),
        steps=500 * ppo.updates,
    )


def ziegler() -> PpoPreset:
    """Sentiment continuation of Ziegler et al.: one million episodes, value head on the policy's trunk.

    Source: lm-human-preferences, launch.py and train_policy.py; Ziegler et al. 2019, arXiv:1909.08593.
    """
    ppo = PpoConfig(
        minibatches=1,
        epochs=4,
        temperature=0.7,
        kl_coefficient=0.15,
        kl_target=6.0,
        kl_horizon=10_000.0,
        discount=1.0,
        trace=0.95,
        clip=0.2,
        value_clip=0.2,
        value_model="head",
        value_coefficient=0.1,
        missing_end_score=-1.0,
        whiten_rewards="minibatch",
    )
    steps = 1_000_000 // _PROMPTS * ppo.updates
    return PpoPreset(ppo=ppo, optimizer=_linear(1e-5, eps_mode="tf"), steps=steps)


def n_plus() -> PpoPreset:
    """Summaries of "The N+ implementation details of RLHF with PPO": one million episodes, value model of its own.

    Source: Huang et al. 2024, arXiv:2403.17031.
    """
    ppo = PpoConfig(
        minibatches=1,
        epochs=4,
        temperature=0.7,
        kl_coefficient=0.05,
        discount=1.0,
        trace=0.95,
        clip=0.2,
        value_clip=0.2,
        value_coefficient=0.1,
        missing_end_score=-1.0,
    )
    steps = 1_000_000 // _PROMPTS * ppo.updates
    return PpoPreset(ppo=ppo, optimizer=_linear(3e-6, eps_mode="paper"), steps=steps)


def _instructgpt_optimizer(peak_lr: float, ppo: PpoConfig) -> OptimizerConfig:
    """Constant after ten rollouts of warm-up from a tenth."""
    return OptimizerConfig(
        peak_lr=peak_lr, schedule="constant", warmup_steps=10 * ppo.updates, start_fraction=0.1, b1=0.9, b2=0.95
    )


def _linear(peak_lr: float, *, eps_mode) -> OptimizerConfig:
    """To zero, nothing clipped."""
    return OptimizerConfig(
        peak_lr=peak_lr, schedule="linear", final_fraction=0.0, b2=0.999, eps=1e-5, eps_mode=eps_mode, clip_norm=None
    )
