"""The optimizer of a run: gradient clipping, AdamW or Muon by parameter role, a schedule."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax

from gptjax.choices import check_choices, check_numbers
from gptjax.optim.adam import scale_by_adam_tf
from gptjax.optim.muon import scale_by_muon
from gptjax.optim.rounded import rounded
from gptjax.types import Params


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule and its schedule; weight decay touches matrices only.

    name: adamw, muon (matrices by Muon, everything else by AdamW; one learning rate serves both), or rmsprop (as in
    PyTorch: the smoothing is b2, eps is added outside the root).
    peak_lr: largest learning rate.  warmup_steps: from the start to the peak.  schedule: after them constant; linear or
    cosine decay over all that is left; wsd: constant, then linear over the end.
    start_fraction, final_fraction: learning rate of the first step (without warm-up it is the peak) and after the last
    one, over the peak.  decay_fraction: of wsd, share of the steps over which it falls.
    b1, b2, eps: Adam's.  eps_mode: paper (eps is added after bias correction, as optax and PyTorch do) or tf (before
    it, as in TensorFlow 1 and OpenAI's PPO: smaller early steps).
    moment_dtype: in which the averages of gradients and squares are kept, float32 or bfloat16 (gptjax.optim.rounded).
    offload: keep them in the hosts' memory between updates; each update takes them to the devices and back.
    weight_decay: decoupled, per unit of learning rate.  clip_norm: largest global gradient norm.
    """

    name: Literal["adamw", "muon", "rmsprop"] = "adamw"
    peak_lr: float
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
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
        check_numbers(
            self,
            "optimizer",
            positive=("peak_lr", "clip_norm"),
            not_negative=("warmup_steps", "eps", "weight_decay"),
            from_0_to_1=("start_fraction", "final_fraction", "decay_fraction"),
            from_0_below_1=("b1", "b2"),
        )


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """step -> learning rate of a run of `steps` updates: linear warm-up to the peak, then one of four shapes."""
    peak, floor, rest = config.peak_lr, config.peak_lr * config.final_fraction, max(1, steps - config.warmup_steps)
    if config.schedule == "constant":
        tail = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        tail = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
    elif config.schedule == "linear":
        tail = optax.linear_schedule(peak, floor, rest)
    else:
        decay = decay_steps(steps, config.decay_fraction)
        tail = optax.linear_schedule(peak, floor, decay, transition_begin=max(0, rest - decay))
    if config.warmup_steps == 0:
        return tail
    warmup = optax.linear_schedule(peak * config.start_fraction, peak, config.warmup_steps)
    return optax.join_schedules([warmup, tail], [config.warmup_steps])


def decay_steps(steps: int, decay_fraction: float) -> int:
    """Steps at the end of a wsd run over which the learning rate falls; before them it does not depend on `steps`."""
    return max(1, int(steps * decay_fraction + 1e-9))


def optimizer(
    config: OptimizerConfig, steps: int, roles: Params, letters: Params, ratios: Params = None
) -> optax.GradientTransformation:
    """The gradient transformation of a run.

    Under muP a matrix's learning rate is divided by its width ratio, while the product of rate and decay is not; Adam's
    epsilon is divided by its gradient's ratio (by multiplying the gradient instead, to which Adam is indifferent).

    Args:
        config: hyper-parameters.
        steps: updates in the run; the schedule ends there.
        roles: matrix, bias, norm or embedding for each parameter.
        letters: dimensions of each parameter (see gptjax.dims).
        ratios: of each parameter to muP's base model (gptjax.model_types.Ratio); None: the standard parametrization.

    Raises:
        ValueError: muon under muP, for whose updates no rule is implemented.

    Source: Yang et al. 2022, arXiv:2203.03466, table 8; Dey et al. 2025, arXiv:2505.01618 (CompleteP, table 1; its
    rule for epsilon holds for every parameter).
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
            _scaled(jax.tree.map(lambda ratio: ratio.gradient, ratios)),
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
