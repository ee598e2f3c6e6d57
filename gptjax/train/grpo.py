"""GRPO and RLOO: one minibatch update on groups of answers to the same prompt, without a critic."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from gptjax.choices import check_choices, check_numbers
from gptjax.losses.groups import Aggregation, aggregated, constant_groups, kl_token_loss
from gptjax.losses.policy import clipped_surrogate, kl_estimates, masked_sum
from gptjax.model_types import Model
from gptjax.train.accumulate import accumulated, totals
from gptjax.train.minibatch import minibatch_rows, taken
from gptjax.train.response import response_logp
from gptjax.train.router import router_loss, router_metrics
from gptjax.train.update import advance
from gptjax.types import GroupRollout, Metrics, Params, TrainState


@dataclass(frozen=True, kw_only=True)
class GrpoLoss:
    """Group-relative policy optimisation: a clipped ratio for each token.

    scale: divide advantages by the group's standard deviation plus eps; False: Dr. GRPO.  ddof: 0 for the deviation of
    the population, 1 for that of the sample.
    aggregation: sequence (DeepSeekMath), token (DAPO) or constant (Dr. GRPO), see gptjax.losses.groups.aggregated.
    clip_low, clip_high: the ratio is clipped to [1 - low, 1 + high]; DAPO's clip-higher is .28.
    kl: k1_in_reward; or as a loss of each token k3_times_ratio, which leaves out what a token does to the KL of later
    ones, or k3_biased, DeepSeekMath's form, whose gradient is that of another KL.
    """

    scale: bool = True
    ddof: Literal[0, 1] = 1
    eps: float = 1e-4
    aggregation: Aggregation = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: Literal["k1_in_reward", "k3_times_ratio", "k3_biased"] = "k1_in_reward"

    def __post_init__(self) -> None:
        check_choices(self, "grpo.loss")
        check_numbers(self, "grpo.loss", positive=("clip_high", "eps"), between_0_and_1=("clip_low",))


@dataclass(frozen=True, kw_only=True)
class RlooLoss:
    """REINFORCE with the mean of the group's other answers as baseline; an answer is one action, KL is in the reward.

    surrogate: clip: the ratio of whole answers, clipped to [1 - clip_low, 1 + clip_high]; reinforce: the plain policy
    gradient, for a rollout that is used once.
    """

    surrogate: Literal["clip", "reinforce"] = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2

    def __post_init__(self) -> None:
        check_choices(self, "grpo.loss")
        check_numbers(self, "grpo.loss", positive=("clip_high",), between_0_and_1=("clip_low",))


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """Settings of learning from groups; the KL coefficient is DeepSeekMath's, the rest as in TRL.

    group_size: C, answers to each prompt.  minibatches: updates per epoch, cut along prompts; they divide B, the
    prompts of a rollout, which are an experiment's batch_size.  epochs: passes over a rollout.
    response_tokens: R, longest response.  temperature: of sampling and of every log-probability.
    kl_coefficient: reward units per nat (in the reward), or weight of the KL loss.
    truncated: what becomes of a response without end-of-turn: penalise: missing_end_penalty off its score; mask: it is
    out of the group's baseline and of the loss.
    loss: GRPO or RLOO.
    """

    group_size: int = 8
    minibatches: int = 1
    epochs: int = 1
    response_tokens: int = 64
    temperature: float = 1.0
    kl_coefficient: float = 0.04
    truncated: Literal["penalise", "mask"] = "penalise"
    missing_end_penalty: float = 1.0
    loss: GrpoLoss | RlooLoss = GrpoLoss()

    def __post_init__(self) -> None:
        check_choices(self, "grpo")
        sizes = ("minibatches", "epochs", "response_tokens")
        check_numbers(self, "grpo", at_least_1=sizes, positive=("temperature",), not_negative=("kl_coefficient",))
        if self.group_size < 2:
            raise ValueError(f"grpo.group_size must be at least 2: answers are compared, got {self.group_size}")
        if isinstance(self.loss, RlooLoss) and self.loss.surrogate == "reinforce" and self.updates > 1:
            raise ValueError(
                f"grpo.loss.surrogate 'reinforce' has no ratio to correct for an older policy, but a rollout gets "
                f"{self.updates} updates: set grpo.minibatches and grpo.epochs to 1, or use 'clip'"
            )

    @property
    def updates(self) -> int:
        """Updates made on one rollout."""
        return self.minibatches * self.epochs

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL is part of the reward, else it is part of the loss."""
        return isinstance(self.loss, RlooLoss) or self.loss.kl == "k1_in_reward"


def grpo_step(
    state: TrainState,
    rollout: GroupRollout,
    *,
    policy: Model,
    optimizer: optax.GradientTransformation,
    config: GrpoConfig,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update of the policy on the next minibatch of whole groups; which one follows from the state's key and step.

    Args:
        state: params of `policy`.
        rollout: made by the policy as it was `state.step % config.updates` updates ago.
        policy: the language model.
        config: settings; config.loss chooses GRPO or RLOO.
        microbatches: pieces in which the gradient is computed, cut along answers.

    Source: Shao et al. 2024, arXiv:2402.03300; Ahmadian et al. 2024, arXiv:2402.14740 (RLOO).
    """
    batch = taken(rollout, minibatch_rows(state, config, rollout.mask_BCR.shape[0])[0])
    flat = GroupRollout(**{name: _flat(x) for name, x in vars(batch).items()})
    rows, count = flat.mask_BCR.shape[0], jnp.maximum(_count(flat, config), 1)

    def share(params, rollout, number):
        del number
        loss_sum, aux, router = _loss_sum(params, state, rollout, policy, config)
        return loss_sum / count + router_loss(router, rows), (aux, router)

    grads, (aux, routers) = accumulated(share, state.params, flat, microbatches)
    sums = totals(aux)
    after, figures = advance(state, grads, optimizer, loss=sums["loss"] / count)
    metrics = _update_metrics(sums, count) | router_metrics(totals(routers), rows)
    return after, metrics | _rollout_metrics(rollout) | figures


def _flat(x: jax.Array) -> jax.Array:
    """[B, C, ...] -> [B C, ...]: the answers of a group stay side by side, on one device."""
    batch_spec, _, *rest = jax.typeof(x).sharding.spec
    return jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=PartitionSpec(batch_spec, *rest))


def _count(rows: GroupRollout, config: GrpoConfig) -> jax.Array:
    """What the loss of flat rows is divided by: answers, tokens or answers times the longest."""
    mask_BR = rows.mask_BCR & rows.counted_BC[:, None]
    if isinstance(config.loss, RlooLoss):
        return jnp.sum(jnp.any(mask_BR, axis=1))
    return aggregated(
        jnp.zeros_like(rows.logp_old_BCR), mask_BR, config.loss.aggregation, longest=config.response_tokens
    )[1]


def _loss_sum(params: Params, state: TrainState, rows: GroupRollout, policy: Model, config: GrpoConfig):
    """(loss_sum, aux, routers' sums) of flat rows, whose fields have lost their C."""
    tokens = {"tokens_BT": rows.tokens_BCT, "segments_BT": rows.segments_BCT, "positions_BT": rows.positions_BCT}
    logp_BR, entropy_BR, router = response_logp(
        policy,
        params=params,
        frozen=state.frozen,
        rows=tokens,
        responses=rows.mask_BCR.shape[1],
        temperature=config.temperature,
    )
    mask_BR = rows.mask_BCR & rows.counted_BC[:, None]
    how = config.loss
    if isinstance(how, RlooLoss):
        loss_sum, aux = _rloo_sum(logp_BR, mask_BR, rows, how)
    else:
        loss_sum, aux = _grpo_sum(logp_BR, mask_BR, rows, how, config)
    sums = {"loss": loss_sum, "entropy": masked_sum(entropy_BR, mask_BR), "tokens": jnp.sum(mask_BR)}
    return loss_sum, aux | sums, router


def _grpo_sum(logp_BR, mask_BR, rows: GroupRollout, how: GrpoLoss, config: GrpoConfig):
    """A clipped ratio for each token, and the KL if it is a loss."""
    advantages_BR = jnp.broadcast_to(rows.advantages_BC[:, None], logp_BR.shape)
    loss_BR, aux = clipped_surrogate(
        logp_BR, rows.logp_old_BCR, advantages_BR, mask_BR, clip_low=how.clip_low, clip_high=how.clip_high
    )
    policy_sum, _ = aggregated(loss_BR, mask_BR, how.aggregation, longest=config.response_tokens)
    aux |= {"policy_loss": policy_sum, "terms": jnp.sum(mask_BR)}
    if how.kl == "k1_in_reward":
        return policy_sum, aux
    kl_BR = kl_token_loss(logp_BR, rows.logp_old_BCR, rows.logp_ref_BCR, mask_BR, kind=how.kl)
    kl_sum, _ = aggregated(kl_BR, mask_BR, how.aggregation, longest=config.response_tokens)
    return policy_sum + config.kl_coefficient * kl_sum, aux | {"kl_loss_nats": kl_sum}


def _rloo_sum(logp_BR, mask_BR, rows: GroupRollout, how: RlooLoss):
    """A ratio, or a log-probability, for each answer."""
    counted_B = jnp.any(mask_BR, axis=1)
    logp_B, logp_old_B = (jnp.sum(jnp.where(mask_BR, x, 0.0), axis=1) for x in (logp_BR, rows.logp_old_BCR))
    loss_B, aux = clipped_surrogate(
        logp_B, logp_old_B, rows.advantages_BC, counted_B, clip_low=how.clip_low, clip_high=how.clip_high
    )
    if how.surrogate == "reinforce":
        loss_B = -rows.advantages_BC * logp_B
    loss_sum = masked_sum(loss_B, counted_B)
    return loss_sum, aux | {"policy_loss": loss_sum, "terms": jnp.sum(counted_B)}


def _update_metrics(sums: dict[str, jax.Array], count: jax.Array) -> Metrics:
    """The tokens that count, and means over them or over answers from the sums over them."""
    terms = jnp.maximum(sums["terms"], 1)
    metrics = {
        "grpo/tokens": sums["tokens"],
        "grpo/clip_low_fraction": sums["clipped_low"] / terms,
        "grpo/clip_high_fraction": sums["clipped_high"] / terms,
        "grpo/approx_kl_k3_nats": sums["k3"] / terms,
        "grpo/ratio_mean": sums["ratio"] / terms,
        "grpo/ratio_min": sums["ratio_min"],
        "grpo/ratio_max": sums["ratio_max"],
        "grpo/entropy_nats_per_token": sums["entropy"] / jnp.maximum(sums["tokens"], 1),
    }
    losses = ("policy_loss", "kl_loss_nats")
    return metrics | {f"grpo/{name}": sums[name] / count for name in losses if name in sums}


def _rollout_metrics(rollout: GroupRollout) -> Metrics:
    """Means over the samples that count, so that a NaN score shows in `unscored` alone; lengths and ends over all."""
    counted_BC, mask_BCR = rollout.counted_BC, rollout.mask_BCR
    n_counted, samples = jnp.maximum(jnp.sum(counted_BC), 1), counted_BC.size
    k1_BCR, _, k3_BCR = kl_estimates(rollout.logp_old_BCR, rollout.logp_ref_BCR, mask_BCR & counted_BC[:, :, None])
    tokens, dtype = jnp.sum(mask_BCR), rollout.scores_BC.dtype
    return {
        "grpo/kl_nats_per_sequence": jnp.sum(k1_BCR) / n_counted,
        "grpo/kl_k3_nats_per_sequence": jnp.sum(k3_BCR) / n_counted,
        "grpo/score": masked_sum(rollout.scores_BC, counted_BC) / n_counted,
        "grpo/reward": masked_sum(rollout.rewards_BC, counted_BC) / n_counted,
        "grpo/constant_group_fraction": jnp.mean(constant_groups(rollout.rewards_BC, counted_BC).astype(dtype)),
        "grpo/uncounted_samples": samples - jnp.sum(counted_BC),
        "grpo/unscored_samples": jnp.sum(~jnp.isfinite(rollout.scores_BC)),
        "grpo/response_tokens": tokens / samples,
        "grpo/end_rate": jnp.mean(rollout.ended_BC.astype(dtype)),
    }
