"""The optimizer of a run: gradient clipping, AdamW or Muon by parameter role, a schedule."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax

from gptjax.optim.adam import scale_by_adam_tf
from gptjax.optim.muon import scale_by_muon
from gptjax.optim.schedule import ScheduleName, schedule
from gptjax.types import Params


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule and its schedule; weight decay touches matrices only.

    name: adamw, muon (matrices by Muon, everything else by AdamW; one learning rate serves both), or rmsprop (as in
    PyTorch: the smoothing is b2, eps is added outside the root).
    peak_lr: largest learning rate.  schedule, warmup_steps, start_fraction, final_fraction: see gptjax.optim.schedule.
    b1, b2, eps: Adam's.  eps_mode: paper (eps is added after bias correction, as optax and PyTorch do) or tf (before
    it, as in TensorFlow 1 and OpenAI's PPO: smaller early steps).
    weight_decay: decoupled, per unit of learning rate.  clip_norm: largest global gradient norm.
    """

    name: Literal["adamw", "muon", "rmsprop"] = "adamw"
    peak_lr: float
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    start_fraction: float = 0.0
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    eps_mode: Literal["paper", "tf"] = "paper"
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


def optimizer(config: OptimizerConfig, steps: int, roles: Params, letters: Params) -> optax.GradientTransformation:
    """The gradient transformation of a run.

    Args:
        config: hyper-parameters.
        steps: updates in the run; the schedule ends there.
        roles: matrix, bias, norm or embedding for each parameter.
        letters: dimensions of each parameter (see gptjax.dims).
    """
    is_matrix = jax.tree.map(lambda role: role == "matrix", roles)
    moments = optax.scale_by_adam if config.eps_mode == "paper" else scale_by_adam_tf
    adam = moments(b1=config.b1, b2=config.b2, eps=config.eps)
    direction = adam
    if config.name == "muon":
        by_muon = jax.tree.map(lambda matrix, letter: matrix and letter.startswith("L"), is_matrix, letters)
        labels = jax.tree.map(lambda chosen: "muon" if chosen else "adam", by_muon)
        direction = optax.partition({"muon": scale_by_muon(letters), "adam": adam}, labels)
    elif config.name == "rmsprop":
        direction = optax.scale_by_rms(decay=config.b2, eps=config.eps, eps_in_sqrt=False)
    return optax.chain(
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm),
        direction,
        optax.add_decayed_weights(config.weight_decay, is_matrix),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
