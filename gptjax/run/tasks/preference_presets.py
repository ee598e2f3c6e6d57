"""Settings of DPO and GRPO as they were published; lengths of prompts and the number of steps are the task's own."""

from dataclasses import dataclass

from gptjax.optim.optimizer import OptimizerConfig
from gptjax.train.dpo import DpoConfig
from gptjax.train.grpo import GrpoConfig, GrpoLoss


@dataclass(frozen=True, kw_only=True)
class DpoPreset:
    """dpo and optimizer belong into an experiment.  batch_size: pairs."""

    dpo: DpoConfig
    optimizer: OptimizerConfig
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class GrpoPreset:
    """grpo and optimizer belong into an experiment.  batch_size: prompts."""

    grpo: GrpoConfig
    optimizer: OptimizerConfig
    batch_size: int


def dpo() -> DpoPreset:
    """DPO's own settings for all tasks but summaries, where beta is 0.5; the smoothing is that of PyTorch's RMSprop.

    Not stated there: the smoothing and the clipping of gradients.

    Source: Rafailov et al. 2023, arXiv:2305.18290, appendix B.
    """
    return DpoPreset(
        dpo=DpoConfig(beta=0.1),
        optimizer=OptimizerConfig(name="rmsprop", peak_lr=1e-6, schedule="constant", warmup_steps=150, b2=0.99),
        batch_size=64,
    )


def deepseekmath() -> GrpoPreset:
    """GRPO of DeepSeekMath: 16 questions, 64 answers to each, one update on each rollout, KL as a loss in its form.

    Not stated there: warm-up, the optimizer's moments, whether the deviation is that of a sample.

    Source: Shao et al. 2024, arXiv:2402.03300, section 4.2.
    """
    loss = GrpoLoss(aggregation="sequence", kl="k3_biased")
    return GrpoPreset(
        grpo=GrpoConfig(group_size=64, minibatches=1, epochs=1, response_tokens=1024, kl_coefficient=0.04, loss=loss),
        optimizer=OptimizerConfig(peak_lr=1e-6, schedule="constant"),
        batch_size=16,
    )
