"""The optimizer of a run: gradient clipping, AdamW or Muon by parameter role, a schedule."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax

from gptjax.choices import check_choices
from gptjax.optim.adam import scale_by_adam_tf
from gptjax.optim.muon import scale_by_muon
from gptjax.optim.rounded import rounded
from gptjax.optim.schedule import ScheduleName, schedule
from gptjax.types import Params


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule and its schedule; weight decay touches matrices only.

    name: adamw, muon (matrices by Muon, everything else by AdamW; one learning rate serves both), or rmsprop (as in
    PyTorch: the smoothing is b2, eps is added outside the root).
    peak_lr: largest learning rate.  schedule, warmup_steps, start_fraction, final_fraction,
    decay_fraction (of wsd): see gptjax.optim.schedule.
    b1, b2, eps: Adam's.  eps_mode: paper (eps is added after bias correction, as optax and PyTorch do) or tf (before
    it, as in TensorFlow 1 and OpenAI's PPO: smaller early steps).
    moment_dtype: in which the averages of gradients and squares are kept, float32 or bfloat16 (gptjax.optim.rounded).
    offload: keep them in the hosts' memory between updates; each update takes them to the devices and back.
    weight_decay: decoupled, per unit of learning rate.  clip_norm: largest global gradient norm.
    """

    name: Literal["adamw", "muon", "rmsprop"] = "adamw"
    peak_lr: float
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    start_fraction: float = 0.0
    final_fraction: float = 0.1
    decay_fraction: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    eps_mode: Literal["paper", "tf"] = "paper"
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    offload: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        check_choices(self, "optimizer")
        if self.peak_lr <= 0:
            raise ValueError(f"optimizer.peak_lr must be positive, got {self.peak_lr}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must not be negative, got {self.warmup_steps}")
        for field in ("b1", "b2", "start_fraction", "final_fraction", "decay_fraction"):
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
        decay_fraction=config.decay_fraction,
    )


def optimizer(
    config: OptimizerConfig, steps: int, roles: Params, letters: Params, ratios: Params = None
) -> optax.GradientTransformation:
    """The gradient transformation of a run.

    Under muP a matrix's learning rate is divided by its width ratio, while the product of rate and decay is not; Adam's
    epsilon is divided by the product of its ratios (by multiplying the gradient instead, to which Adam is indifferent).

    Args:
        config: hyper-parameters.
        steps: updates in the run; the schedule ends there.
        roles: matrix, bias, norm or embedding for each parameter.
        letters: dimensions of each parameter (see gptjax.dims).
        ratios: of each parameter to muP's base model (gptjax.model_types.Ratio); None: the standard parametrization.

    Raises:
        ValueError: muon under muP, for whose updates no rule is implemented.

    Source: Yang et al. 2022, arXiv:2203.03466, table 8; Dey et al. 2025, arXiv:2505.01618 (CompleteP, table 1).
    """
    if ratios is not None and config.name == "muon":
        raise ValueError("optimizer.name muon has no muP rule: use adamw, or leave model.mup_base_width None")
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
    if config.moment_dtype == "bfloat16":
        direction = rounded(direction)
    if ratios is not None:
        direction = optax.chain(
            _scaled(jax.tree.map(lambda ratio: ratio.width * ratio.depth, ratios)),
            direction,
            _scaled(jax.tree.map(lambda ratio: 1.0 / ratio.width, ratios)),
        )
    return optax.chain(
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm),
        direction,
        optax.add_decayed_weights(config.weight_decay, is_matrix),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def _scaled(factors: Params) -> optax.GradientTransformation:
    """Each parameter's update times its factor."""

    def update(updates: Params, params: Params | None = None) -> Params:
        del params
        return jax.tree.map(
            lambda factor, x: x if isinstance(x, optax.MaskedNode) else x * factor, factors, updates
        )  # fmt: skip

    return optax.stateless(update)
