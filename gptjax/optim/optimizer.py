"""The optimizer of a run: gradient clipping, AdamW with decay by parameter role, a schedule."""

from dataclasses import dataclass

import jax
import optax

from gptjax.optim.schedule import ScheduleName, schedule
from gptjax.types import Params


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule; weight decay touches matrices only.

    peak_lr: largest learning rate.  schedule, warmup_steps, start_fraction, final_fraction: see gptjax.optim.schedule.
    b1, b2, eps: Adam's.  weight_decay: decoupled, per unit of learning rate.  clip_norm: largest global gradient norm.
    """

    peak_lr: float
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    start_fraction: float = 0.0
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.peak_lr <= 0:
            raise ValueError(f"optimizer.peak_lr must be positive, got {self.peak_lr}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must not be negative, got {self.warmup_steps}")
        for field in ("b1", "b2", "start_fraction", "final_fraction"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ValueError(f"optimizer.{field} must lie in [0, 1], got {getattr(self, field)}")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """step -> learning rate of a run of `steps` updates."""
    return schedule(
        config.schedule,
        peak=config.peak_lr,
        steps=steps,
        warmup_steps=config.warmup_steps,
        start_fraction=config.start_fraction,
        final_fraction=config.final_fraction,
    )


def optimizer(config: OptimizerConfig, steps: int, roles: Params) -> optax.GradientTransformation:
    """The gradient transformation of a run.

    Args:
        config: hyper-parameters.
        steps: updates in the run; the schedule ends there.
        roles: matrix, bias, norm or embedding for each parameter.
    """
    decays = jax.tree.map(lambda role: role == "matrix", roles)
    return optax.chain(
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )
