"""Proximal policy optimisation: one minibatch update on a rollout."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.losses.policy import (
    adapted_kl_coefficient,
    clipped_surrogate,
    clipped_value_loss,
    importance_weights,
    kl_estimates,
    masked_sum,
)
from gptjax.losses.returns import gae, whitened
from gptjax.model_types import Model, ScalarModel, ValueHead
from gptjax.train.accumulate import accumulated, totals
from gptjax.train.minibatch import minibatch_rows, taken
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.response import hidden_logp, response_hidden, response_values
from gptjax.train.router import router_loss, router_metrics
from gptjax.train.rows import row_sums, weight_sum
from gptjax.train.update import advance, chosen
from gptjax.types import LmBatch, Metrics, Params, Rollout, TrainState


def initial_extra(config: PpoConfig, policy_params: Params) -> dict[str, Any]:
    """What PPO's state carries besides parameters: KL coefficient, counters and, if kept, the averaged policy."""
    extra = {
        "kl_coefficient": jnp.asarray(config.kl_coefficient, jnp.float32),
        "stopped": jnp.zeros((), bool),
        "updates_made": jnp.zeros((), jnp.int32),
    }
    return extra if config.average_decay is None else extra | {"average": jax.tree.map(jnp.copy, policy_params)}


def served_policy(state: TrainState) -> Params:
    """The policy that a finished run hands on: the averaged weights if they are kept, else the last ones."""
    return state.extra.get("average", state.params["policy"])


def ppo_step(
    state: TrainState,
    rollout: Rollout,
    *,
    policy: Model,
    scalar: ScalarModel,
    optimizer: optax.GradientTransformation,
    config: PpoConfig,
    head: ValueHead | None = None,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update of policy and value on the next minibatch; which rows it has follows from the state's key and step.

    An update that is not made (the policy has moved too far on this rollout, the rollout is too old, or the update is
    not finite) leaves parameters and optimizer as they were, bit by bit; `step` counts it, `extra["updates_made"]`
    does not.

    Args:
        state: params {"policy", "value"}; extra as `initial_extra` makes it.
        rollout: made by the policy as it was `state.step % config.updates` updates ago.
        policy: the language model.
        scalar: the value model; not used with a head.
        optimizer: acts on policy and value together; a separate value model's gradient does not mix with the policy's.
        config: PPO's settings.
        head: the value head on the policy's trunk, if there is one.
        microbatches: pieces in which the gradient is computed.

    Source: Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, equation 2.
    """
    batch, pretrain = minibatch(state, rollout, config)
    batch = _with_advantages(batch, config)
    grads, loss, metrics = _gradients(state, batch, policy, scalar, head, config, microbatches)
    if pretrain is not None:
        grads, ptx_metrics = _with_pretraining(grads, state, pretrain, policy, config, microbatches)
        metrics |= ptx_metrics
    kl = masked_sum(rollout.logp_old_BR - rollout.logp_ref_BR, rollout.mask_BR) / _scored_rows(rollout)
    stale = state.step // config.updates - rollout.version > config.max_lag
    stopped = _stopped(state, metrics["ppo/approx_kl_k3_nats"], config)
    wanted, coefficient = ~(stale | stopped), _next_coefficient(state, kl, rollout.mask_BR.shape[0], config)
    after, figures = advance(state, grads, optimizer, loss=loss, wanted=wanted, kl_coefficient=coefficient)
    made = wanted & (figures["optim/updates_skipped"] == 0)
    metrics |= _rollout_metrics(rollout, kl, state.extra["kl_coefficient"]) | figures
    metrics |= {"ppo/updates": made.astype(jnp.int32), "ppo/stale": stale.astype(jnp.int32)}
    return _counted(made, stopped, after, state, config), metrics


def _gradients(
    state: TrainState,
    batch: Rollout,
    policy: Model,
    scalar: ScalarModel,
    head: ValueHead | None,
    config: PpoConfig,
    microbatches: int,
) -> tuple[Params, jax.Array, Metrics]:
    """(gradients of policy and value, loss, figures) of a minibatch."""
    rows, count = batch.mask_BR.shape[0], jnp.maximum(jnp.sum(batch.mask_BR), 1)

    def share(params, batch, number):
        del number
        tokens, responses = _rows(batch), batch.mask_BR.shape[1]
        h_BRD, router = response_hidden(policy, params["policy"], state.frozen, tokens, responses)
        policy_sum, aux = _policy_sum(params["policy"], state, h_BRD, batch, policy, config)
        if head is None:
            values_BR, value_router = response_values(scalar, params["value"], state.frozen, tokens, responses)
        else:
            values_BR, value_router = head.values(params["value"], h_BRD), None
        value_sum, _, value_aux = clipped_value_loss(
            values_BR, batch.values_BR, batch.returns_BR, batch.mask_BR, clip=config.value_clip
        )
        loss = policy_sum / count + config.value_coefficient * value_sum / count
        loss += router_loss(router, rows) + router_loss(value_router, rows)
        return loss, (aux | {"value_loss": value_sum, "value_clipped": value_aux["clipped"]}, router)

    grads, (aux, routers) = accumulated(share, state.params, batch, microbatches)
    sums = totals(aux)
    loss = (sums["policy_loss"] + config.value_coefficient * sums["value_loss"]) / count
    return (
        grads,
        loss,
        _update_metrics(sums, batch, count)
        | router_metrics(totals(routers), rows)
        | {
            "optim/grad_norm_policy": optax.tree.norm(grads["policy"]),
            "optim/grad_norm_value": optax.tree.norm(grads["value"]),
        },
    )


def minibatch(state: TrainState, rollout: Rollout, config: PpoConfig) -> tuple[Rollout, LmBatch | None]:
    """The rows of this update, and its share of the pre-training rows."""
    rows_B, piece = minibatch_rows(state, config, rollout.mask_BR.shape[0])
    pretrain = rollout.pretrain
    if pretrain is not None:
        share = pretrain.tokens_BT.shape[0] // config.minibatches
        pretrain = taken(pretrain, jnp.arange(share) + piece * share)
    return taken(dataclasses.replace(rollout, pretrain=None), rows_B), pretrain


def _rows(batch: Rollout) -> dict[str, jax.Array]:
    return {"tokens_BT": batch.tokens_BT, "segments_BT": batch.segments_BT, "positions_BT": batch.positions_BT}


def _with_advantages(batch: Rollout, config: PpoConfig) -> Rollout:
    """The minibatch with whatever is whitened over minibatches; the critic's targets stay un-whitened."""
    advantages_BR, returns_BR = batch.advantages_BR, batch.returns_BR
    if config.whiten_rewards == "minibatch":
        rewards_BR = whitened(batch.rewards_BR, batch.mask_BR, shift_mean=False)
        advantages_BR, returns_BR = gae(
            rewards_BR, batch.values_BR, batch.mask_BR, discount=config.discount, trace=config.trace
        )
    if config.whiten_advantages == "minibatch":
        advantages_BR = whitened(advantages_BR, batch.mask_BR)
    return dataclasses.replace(batch, advantages_BR=advantages_BR, returns_BR=returns_BR)


def _policy_sum(params: Params, state, h_BRD, batch: Rollout, policy: Model, config: PpoConfig):
    logp_BR, entropy_BR = hidden_logp(policy, params, state.frozen, h_BRD, batch.tokens_BT, config.temperature)
    advantages_BR = batch.advantages_BR
    if config.importance_cap is not None:
        advantages_BR *= importance_weights(
            batch.logp_old_BR, batch.logp_sampler_BR, batch.mask_BR, cap=config.importance_cap
        )
    loss_BR, aux = clipped_surrogate(
        logp_BR, batch.logp_old_BR, advantages_BR, batch.mask_BR, clip_low=config.clip, clip_high=config.clip
    )
    loss_sum = masked_sum(loss_BR, batch.mask_BR)
    return loss_sum, aux | {"policy_loss": loss_sum, "entropy": masked_sum(entropy_BR, batch.mask_BR)}


def _update_metrics(sums: dict[str, jax.Array], batch: Rollout, count: jax.Array) -> Metrics:
    """The minibatch's tokens, and means over them from the sums over them."""
    error_variance = _variance(batch.returns_BR - batch.values_BR, batch.mask_BR)
    return_variance = _variance(batch.returns_BR, batch.mask_BR)
    return {
        "ppo/tokens": jnp.sum(batch.mask_BR),
        "ppo/policy_loss": sums["policy_loss"] / count,
        "ppo/clip_fraction": (sums["clipped_low"] + sums["clipped_high"]) / count,
        "ppo/approx_kl_k2_nats": sums["k2"] / count,
        "ppo/approx_kl_k3_nats": sums["k3"] / count,
        "ppo/ratio_mean": sums["ratio"] / count,
        "ppo/ratio_min": sums["ratio_min"],
        "ppo/ratio_max": sums["ratio_max"],
        "ppo/entropy_nats_per_token": sums["entropy"] / count,
        "ppo/value_loss": sums["value_loss"] / count,
        "ppo/value_clip_fraction": sums["value_clipped"] / count,
        "ppo/explained_variance": 1.0 - error_variance / jnp.maximum(return_variance, 1e-8),
    }


def _with_pretraining(
    grads: Params, state: TrainState, pretrain: LmBatch, policy: Model, config: PpoConfig, microbatches: int
):
    """The gradients with that of the pre-training loss accumulated into the policy's, and how large each is."""
    rows, count = pretrain.tokens_BT.shape[0], weight_sum(pretrain)

    def share(params, batch, number):
        del number
        sums, router = row_sums(params, state.frozen, batch, policy)
        nll = sums.nll_sum / count
        # the whole gradient is weighed by the coefficient, of which the routers' own losses know nothing
        return nll + router_loss(router, rows) / config.ptx_coefficient, nll

    own, losses = accumulated(share, state.params["policy"], pretrain, microbatches)
    loss = totals(losses)
    norm, norm_policy = optax.tree.norm(own), optax.tree.norm(grads["policy"])
    total = jax.tree.map(lambda g, p: g + config.ptx_coefficient * p, grads["policy"], own)
    return grads | {"policy": total}, {
        "ppo/ptx_nats_per_token": loss,
        "optim/grad_norm_ptx": norm,
        "ppo/ptx_gradient_ratio": config.ptx_coefficient * norm / jnp.maximum(norm_policy, 1e-12),
    }


def _stopped(state: TrainState, k3: jax.Array, config: PpoConfig) -> jax.Array:
    """Whether the updates on this rollout are over: the policy has moved 1.5 times as far as it should, or had."""
    if config.stop_kl is None:
        return state.extra["stopped"]
    is_first = state.step % config.updates == 0
    return (state.extra["stopped"] & ~is_first) | (k3 > 1.5 * config.stop_kl)


def _counted(
    made: jax.Array, stopped: jax.Array, after: TrainState, before: TrainState, config: PpoConfig
) -> TrainState:
    """`after` with what an update moves if it was made: their count and, if it is kept, the average of the policy.

    Whether this rollout's updates are over holds even after one that was not finite: what the state still says of the
    rollout before would stop them all.
    """
    extra = after.extra | {"updates_made": before.extra["updates_made"] + made.astype(jnp.int32), "stopped": stopped}
    if config.average_decay is not None:
        decay, average = config.average_decay, before.extra["average"]
        moved = jax.tree.map(
            lambda a, p: (decay * a + (1 - decay) * p).astype(a.dtype), average, after.params["policy"]
        )
        extra["average"] = chosen(made, moved, average)
    return dataclasses.replace(after, extra=extra)


def _scored_rows(rollout: Rollout) -> jax.Array:
    """Responses with a score, at least 1: one without has no token in the mask."""
    return jnp.maximum(jnp.sum(jnp.any(rollout.mask_BR, axis=1)), 1)


def _rollout_metrics(rollout: Rollout, kl: jax.Array, kl_coefficient: jax.Array) -> Metrics:
    """Figures of the whole rollout; means over the responses that have a score."""
    scored_B, rows = jnp.any(rollout.mask_BR, axis=1), _scored_rows(rollout)
    k3_BR = kl_estimates(rollout.logp_old_BR, rollout.logp_ref_BR, rollout.mask_BR)[2]
    tokens, score = jnp.sum(rollout.mask_BR), masked_sum(rollout.scores_B, scored_B) / rows
    metrics = {
        "ppo/kl_nats_per_sequence": kl,
        "ppo/kl_k3_nats_per_sequence": jnp.sum(k3_BR) / rows,
        "ppo/kl_coefficient": kl_coefficient,
        "ppo/score": score,
        "ppo/non_score_reward": -kl_coefficient * kl,
        "ppo/reward": score - kl_coefficient * kl,
        "ppo/response_tokens": tokens / rows,
        "ppo/end_rate": jnp.sum(rollout.ended_B & scored_B) / rows,
        "ppo/unscored": jnp.sum(~scored_B),
    }
    if rollout.logp_sampler_BR is not None:
        gap_BR = jnp.where(rollout.mask_BR, jnp.abs(rollout.logp_sampler_BR - rollout.logp_old_BR), 0.0)
        metrics["ppo/sampler_gap_mean_nats"] = jnp.sum(gap_BR) / jnp.maximum(tokens, 1)
        metrics["ppo/sampler_gap_max_nats"] = jnp.max(gap_BR)
    return metrics


def _next_coefficient(state: TrainState, kl: jax.Array, episodes: int, config: PpoConfig) -> jax.Array:
    coefficient = state.extra["kl_coefficient"]
    if config.kl_target is None:
        return coefficient
    adapted = adapted_kl_coefficient(
        coefficient, kl, target=config.kl_target, horizon=config.kl_horizon, episodes=episodes
    )
    is_last = state.step % config.updates == config.updates - 1
    return jnp.where(is_last, adapted, coefficient)


def _variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = masked_sum(x, mask) / count
    return masked_sum(jnp.square(x - mean), mask) / count
