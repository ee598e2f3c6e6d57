"""Reward modelling: one update on prompts whose candidate responses were ranked or rated."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec, reshard

from gptjax import dims
from gptjax.losses.preference import choice_loss, gap_margins, ranking_loss
from gptjax.losses.rating import rating_loss
from gptjax.train.update import advance
from gptjax.types import Metrics, PackedCandidates, Params, RatingBatch, RewardBatch, ScalarModel, TrainState


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What the reward model learns, and what its scores are shifted and scaled to afterwards; defaults: InstructGPT.

    objective: ranking (all pairs of a prompt), choice (softmax over its candidates) or rating (1 to 7, regression).
    gap_margins: ranking: score difference owed by ranks that differ by 1, 2, ...; the last one holds for larger gaps.
    label_smoothing: ranking: probability that a pair was mixed up.  center: ranking: coefficient of the squared sum of
    a pair's scores.
    normalisation: demonstrations (bias: their mean score is 0) or reference (gain and bias: samples of the policy that
    training starts from have mean 0 and standard deviation 1); it changes no loss.
    """

    objective: Literal["ranking", "choice", "rating"] = "ranking"
    gap_margins: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    center: float = 0.0
    normalisation: Literal["demonstrations", "reference"] = "demonstrations"

    def __post_init__(self) -> None:
        for name, choices in (
            ("objective", ("ranking", "choice", "rating")),
            ("normalisation", ("demonstrations", "reference")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"reward.{name}: choose one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not all(math.isfinite(margin) for margin in self.gap_margins):
            raise ValueError(f"reward.gap_margins must be finite, got {self.gap_margins}")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"reward.label_smoothing must lie in [0, .5), got {self.label_smoothing}")
        if not 0.0 <= self.center < math.inf:
            raise ValueError(f"reward.center must be at least 0 and finite, got {self.center}")
        for name in ("gap_margins", "label_smoothing", "center"):
            if self.objective != "ranking" and getattr(self, name):
                raise ValueError(f"reward.{name} belongs to objective 'ranking', not to {self.objective!r}: unset it")


def candidate_scores(params: Params, frozen: Params, batch: PackedCandidates, *, model: ScalarModel) -> jax.Array:
    """f32[B, C], the model's value at the last token of each candidate; one forward pass over the packed rows."""
    values_BT = model.values(params, frozen, batch.tokens_BT, batch.segments_BT, batch.positions_BT)
    values_BT = reshard(values_BT, PartitionSpec(None, None))  # a candidate's row may be on another device
    row_BC, column_BC = jnp.divmod(batch.last_BC, values_BT.shape[1])
    scores_BC = values_BT.at[row_BC, column_BC].get(out_sharding=dims.act_spec("BC"))
    return jnp.where(batch.judged.lengths_BC > 0, scores_BC, 0.0)


def reward_step(
    state: TrainState,
    batch: PackedCandidates,
    *,
    model: ScalarModel,
    optimizer: optax.GradientTransformation,
    config: RewardConfig = RewardConfig(),
) -> tuple[TrainState, Metrics]:
    """One update; all candidates of a prompt belong to one batch, none sees another, and dropout is off.

    A candidate whose score is not finite is left out of the loss and counted.

    Args:
        state: params of `model`.
        batch: ranked candidates, or rated ones with objective "rating", packed into rows.
        model: the reward model.
        optimizer: the update rule.
        config: the objective and its options.

    Raises:
        ValueError: ratings without objective "rating", or the reverse.

    Source: Ouyang et al. 2022, arXiv:2203.02155, equation 1 and appendix C.2.
    """

    def loss_fn(params):
        scores_BC = candidate_scores(params, state.frozen, batch, model=model)
        loss_sum, count, metrics = _objective(scores_BC, batch.judged, config)
        loss = loss_sum / jnp.where(count > 0, count, 1)
        return loss, {"reward/loss": loss, **metrics, **_score_metrics(scores_BC, batch.judged.lengths_BC > 0)}

    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    after, figures = advance(state, grads, optimizer, loss=loss)
    return after, metrics | {"reward/tokens": jnp.sum(batch.judged.lengths_BC)} | figures


def _objective(
    scores_BC: jax.Array, judged: RewardBatch | RatingBatch, config: RewardConfig
) -> tuple[jax.Array, jax.Array, Metrics]:
    """(loss_sum, count, metrics) of the configured loss."""
    if isinstance(judged, RatingBatch) != (config.objective == "rating"):
        raise ValueError(f"reward.objective {config.objective!r} does not go with a {type(judged).__name__}")
    if isinstance(judged, RatingBatch):
        loss_sum, weight_sum, aux = rating_loss(scores_BC, judged.ratings_BC, judged.weights_BC)
        error = aux["absolute"] / jnp.where(weight_sum > 0, weight_sum, 1)
        return (
            loss_sum,
            weight_sum,
            {
                "reward/absolute_error_points": error,
                "reward/ratings": aux["rated"],
                "reward/not_finite": aux["not_finite"],
            },
        )
    if config.objective == "choice":
        loss_sum, count, aux = choice_loss(scores_BC, judged.ranks_BC)
    else:
        margins_BCC = judged.margins_BCC
        if config.gap_margins:
            by_gap_BCC = gap_margins(judged.ranks_BC, config.gap_margins)
            margins_BCC = by_gap_BCC if margins_BCC is None else margins_BCC + by_gap_BCC
        loss_sum, count, aux = ranking_loss(
            scores_BC,
            judged.ranks_BC,
            margins_BCC,
            label_smoothing=config.label_smoothing,
            center=config.center,
        )
    n_prompts = jnp.maximum(count, 1)
    return (
        loss_sum,
        count,
        {
            "reward/loss_nats": aux["nll"] / n_prompts,
            "reward/center": aux["center"] / n_prompts,
            "reward/accuracy": aux["correct"] / jnp.maximum(aux["pairs"], 1),
            "reward/prompts": count,
            "reward/pairs": aux["pairs"],
            "reward/not_finite": aux["not_finite"],
        },
    )


def _score_metrics(scores_BC: jax.Array, present_BC: jax.Array) -> Metrics:
    usable_BC = present_BC & jnp.isfinite(scores_BC)
    count = jnp.maximum(jnp.sum(usable_BC), 1)
    mean = jnp.sum(jnp.where(usable_BC, scores_BC, 0.0)) / count
    variance = jnp.sum(jnp.where(usable_BC, jnp.square(scores_BC - mean), 0.0)) / count
    return {"reward/score_mean": mean, "reward/score_std": jnp.sqrt(variance)}
