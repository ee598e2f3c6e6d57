"""Reward modelling: one update on prompts whose candidate responses were ranked or rated."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec, reshard

from gptjax import dims
from gptjax.choices import check_choices
from gptjax.losses.preference import choice_loss, gap_margins, ranking_loss
from gptjax.losses.rating import rating_loss
from gptjax.model_types import RouterSums, ScalarModel
from gptjax.train.accumulate import accumulated, totals
from gptjax.train.router import router_loss, router_metrics
from gptjax.train.update import advance
from gptjax.types import Metrics, PackedCandidates, Params, RatingBatch, RewardBatch, TrainState


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
        check_choices(self, "reward")
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
    return _scores(params, frozen, batch, model, 1)[0]


def _scores(
    params: Params, frozen: Params, batch: PackedCandidates, model: ScalarModel, microbatches: int
) -> tuple[jax.Array, RouterSums | None]:
    """(scores_BC, routers' sums) of one of the microbatches, whose rows are every `microbatches`-th of the batch."""
    values_BT, router = model.values(params, frozen, batch.tokens_BT, batch.segments_BT, batch.positions_BT)
    values_BT = reshard(values_BT, PartitionSpec(None, None))  # a candidate's row may be on another device
    row_BC, column_BC = jnp.divmod(batch.last_BC, values_BT.shape[1])
    scores_BC = values_BT.at[row_BC // microbatches, column_BC].get(out_sharding=dims.act_spec("BC"))
    return jnp.where(batch.judged.lengths_BC > 0, scores_BC, 0.0), router


def reward_step(
    state: TrainState,
    batch: PackedCandidates,
    *,
    model: ScalarModel,
    optimizer: optax.GradientTransformation,
    config: RewardConfig = RewardConfig(),
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update; all candidates of a prompt belong to one batch, none sees another, and dropout is off.

    A candidate whose score is not finite is left out of the loss and counted.

    Args:
        state: params of `model`.
        batch: ranked candidates, or rated ones with objective "rating", packed into rows.
        model: the reward model.
        optimizer: the update rule.
        config: the objective and its options.
        microbatches: pieces in which the gradient is computed; the candidates are packed with a multiple of them.

    Raises:
        ValueError: ratings without objective "rating", or the reverse.

    Source: Ouyang et al. 2022, arXiv:2203.02155, equation 1 and appendix C.2.
    """

    rows, lengths_BC = batch.tokens_BT.shape[0], batch.judged.lengths_BC
    all_finite_BC = jnp.zeros_like(lengths_BC, jnp.float32)
    _, expected, _ = _objective(all_finite_BC, batch.judged, config)  # the count below is known only with the scores

    def share(params, batch, number):
        del number
        scores_BC, router = _scores(params, state.frozen, batch, model, microbatches)
        loss_sum, count, aux = _objective(scores_BC, batch.judged, config)
        sums = {"loss": loss_sum, "count": count, **aux}
        return loss_sum + expected * router_loss(router, rows), (sums, router, scores_BC, batch.judged.lengths_BC > 0)

    grads, (aux, routers, *scored) = accumulated(share, state.params, batch, microbatches)
    sums = totals(aux)
    count = jnp.where(sums["count"] > 0, sums["count"], 1)
    grads, loss = jax.tree.map(lambda grad: grad / count, grads), sums["loss"] / count
    after, figures = advance(state, grads, optimizer, loss=loss)
    metrics = {"reward/loss": loss, **_figures(sums, config), **_score_metrics(*scored)}
    metrics |= router_metrics(totals(routers), rows) | {"reward/tokens": jnp.sum(lengths_BC)}
    return after, metrics | figures


def _objective(
    scores_BC: jax.Array, judged: RewardBatch | RatingBatch, config: RewardConfig
) -> tuple[jax.Array, jax.Array, Metrics]:
    """(loss_sum, count, aux) of the configured loss."""
    if isinstance(judged, RatingBatch) != (config.objective == "rating"):
        raise ValueError(f"reward.objective {config.objective!r} does not go with a {type(judged).__name__}")
    if isinstance(judged, RatingBatch):
        return rating_loss(scores_BC, judged.ratings_BC, judged.weights_BC)
    if config.objective == "choice":
        return choice_loss(scores_BC, judged.ranks_BC)
    margins_BCC = judged.margins_BCC
    if config.gap_margins:
        by_gap_BCC = gap_margins(judged.ranks_BC, config.gap_margins)
        margins_BCC = by_gap_BCC if margins_BCC is None else margins_BCC + by_gap_BCC
    return ranking_loss(
        scores_BC,
        judged.ranks_BC,
        margins_BCC,
        label_smoothing=config.label_smoothing,
        center=config.center,
    )


def _figures(sums: dict[str, jax.Array], config: RewardConfig) -> Metrics:
    """What is logged of the loss, from its sums."""
    count = sums["count"]
    if config.objective == "rating":
        return {
            "reward/absolute_error_points": sums["absolute"] / jnp.where(count > 0, count, 1),
            "reward/ratings": sums["rated"],
            "reward/not_finite": sums["not_finite"],
        }
    n_prompts = jnp.maximum(count, 1)
    return {
        "reward/loss_nats": sums["nll"] / n_prompts,
        "reward/center": sums["center"] / n_prompts,
        "reward/accuracy": sums["correct"] / jnp.maximum(sums["pairs"], 1),
        "reward/prompts": count,
        "reward/pairs": sums["pairs"],
        "reward/not_finite": sums["not_finite"],
    }


def _score_metrics(scores: jax.Array, present: jax.Array) -> Metrics:
    usable = present & jnp.isfinite(scores)
    count = jnp.maximum(jnp.sum(usable), 1)
    mean = jnp.sum(jnp.where(usable, scores, 0.0)) / count
    variance = jnp.sum(jnp.where(usable, jnp.square(scores - mean), 0.0)) / count
    return {"reward/score_mean": mean, "reward/score_std": jnp.sqrt(variance)}
