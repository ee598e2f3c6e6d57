"""Proximal policy optimisation: one minibatch update on a rollout."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from gptjax import dims
from gptjax.losses.cross_entropy import chunked_nll
from gptjax.losses.policy import (
    adapted_kl_coefficient,
    clipped_policy_loss,
    clipped_value_loss,
    kl_estimates,
    masked_sum,
)
from gptjax.losses.returns import whitened
from gptjax.train.response import response_logp, response_values
from gptjax.train.update import advance
from gptjax.types import LmBatch, Metrics, Model, Params, Rollout, ScalarModel, TrainState


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """PPO's settings; defaults as in InstructGPT where it states them, else as in lm-human-preferences.

    prompts: B of a rollout.  minibatches: updates per epoch; they divide B.  epochs: passes over a rollout.
    response_tokens: R, longest response.  temperature: of sampling and of every log-probability.  Truncated sampling
    (top-k, top-p) is not offered: the ratio would compare two different distributions.
    kl_coefficient: reward units per nat; kl_target, kl_horizon: steer it (None: it stays).
    discount, trace: gamma and lambda of the advantage estimates.  clip, value_clip: PPO's (None: values unclipped).
    missing_end_score: score of a response without end-of-turn (None: its own score minus missing_end_penalty).
    whiten_rewards: scale rewards to standard deviation 1 first.
    ptx_coefficient: weight of the pre-training loss (nats per token) in the policy's gradient (0: off).
    """

    prompts: int = 64
    minibatches: int = 4
    epochs: int = 1
    response_tokens: int = 64
    temperature: float = 1.0
    kl_coefficient: float = 0.02
    kl_target: float | None = None
    kl_horizon: float = 10_000.0
    discount: float = 1.0
    trace: float = 0.95
    clip: float = 0.2
    value_clip: float | None = 0.2
    missing_end_score: float | None = None
    missing_end_penalty: float = 1.0
    whiten_rewards: bool = False
    ptx_coefficient: float = 0.0

    def __post_init__(self) -> None:
        for field in ("prompts", "minibatches", "epochs", "response_tokens"):
            if getattr(self, field) < 1:
                raise ValueError(f"ppo.{field} must be at least 1, got {getattr(self, field)}")
        if self.prompts % self.minibatches:
            raise ValueError(f"ppo.minibatches {self.minibatches} do not divide ppo.prompts {self.prompts}")
        if self.temperature <= 0:
            raise ValueError(f"ppo.temperature must be positive, got {self.temperature}")

    @property
    def updates(self) -> int:
        """Updates made on one rollout."""
        return self.minibatches * self.epochs


def ppo_step(
    state: TrainState,
    rollout: Rollout,
    *,
    policy: Model,
    scalar: ScalarModel,
    optimizer: optax.GradientTransformation,
    config: PpoConfig,
) -> tuple[TrainState, Metrics]:
    """One update of policy and value on the next minibatch; which rows it has follows from the state's key and step.

    Args:
        state: params {"policy", "value"}; extra {"kl_coefficient"}.
        rollout: made by the policy as it was `state.step % config.updates` updates ago.
        policy: the language model.
        scalar: the value model.
        optimizer: acts on policy and value together; their gradients do not mix.
        config: PPO's settings.

    Source: Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, equation 2.
    """
    batch, pretrain = minibatch(state, rollout, config)
    advantages_BR = whitened(batch.advantages_BR, batch.mask_BR)

    def loss_fn(params):
        policy_loss, policy_metrics = _policy_loss(params["policy"], state, batch, advantages_BR, policy, config)
        value_loss, value_metrics = _value_loss(params["value"], state, batch, scalar, config)
        ptx_loss = 0.0 if pretrain is None else _ptx_loss(params["policy"], state, pretrain, policy)
        metrics = policy_metrics | value_metrics | ({} if pretrain is None else {"ppo/ptx_nats_per_token": ptx_loss})
        return policy_loss + value_loss + config.ptx_coefficient * ptx_loss, metrics

    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    kl = jnp.sum(kl_estimates(rollout.logp_old_BR, rollout.logp_ref_BR, rollout.mask_BR)[0]) / rollout.mask_BR.shape[0]
    metrics |= _rollout_metrics(rollout, kl)
    metrics |= {
        "ppo/kl_coefficient": state.extra["kl_coefficient"],
        "optim/grad_norm_policy": optax.tree.norm(grads["policy"]),
        "optim/grad_norm_value": optax.tree.norm(grads["value"]),
    }
    return advance(state, grads, optimizer, kl_coefficient=_next_coefficient(state, kl, config)), metrics


def minibatch(state: TrainState, rollout: Rollout, config: PpoConfig) -> tuple[Rollout, LmBatch | None]:
    """The rows of this update: each epoch is a fresh permutation of the rollout, cut into equal pieces."""
    number = state.step % config.updates
    epoch, piece = number // config.minibatches, number % config.minibatches
    collected = state.step // config.updates
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), collected)
    order_B = jax.random.permutation(jax.random.fold_in(key, epoch + 1), config.prompts)
    size = config.prompts // config.minibatches
    rows_B = jax.lax.dynamic_slice_in_dim(order_B, piece * size, size)

    def take(x, rows_B):
        return x.at[rows_B].get(out_sharding=dims.act_spec("BT" if x.ndim > 1 else "B", decoding=True))

    def take_layout(x, rows_B):
        return jax.sharding.reshard(take(x, rows_B), jax.typeof(x).sharding.spec)

    pretrain = rollout.pretrain
    if pretrain is not None:
        share = pretrain.tokens_BT.shape[0] // config.minibatches
        own_B = jnp.arange(share) + piece * share
        pretrain = jax.tree.map(lambda x: take_layout(x, own_B), pretrain)
    chosen = {name: take_layout(value, rows_B) for name, value in vars(rollout).items() if name != "pretrain"}
    return Rollout(**chosen), pretrain


def _rows(batch: Rollout) -> dict[str, jax.Array]:
    return {"tokens_BT": batch.tokens_BT, "segments_BT": batch.segments_BT, "positions_BT": batch.positions_BT}


def _policy_loss(params: Params, state, batch: Rollout, advantages_BR, policy: Model, config: PpoConfig):
    logp_BR, entropy_BR = response_logp(
        policy,
        params=params,
        frozen=state.frozen,
        rows=_rows(batch),
        responses=batch.mask_BR.shape[1],
        temperature=config.temperature,
    )
    loss_sum, n_tokens, aux = clipped_policy_loss(
        logp_BR, batch.logp_old_BR, advantages_BR, batch.mask_BR, clip=config.clip
    )
    count = jnp.maximum(n_tokens, 1)
    return loss_sum / count, {
        "ppo/policy_loss": loss_sum / count,
        "ppo/clip_fraction": aux["clipped"] / count,
        "ppo/approx_kl_k2_nats": aux["k2"] / count,
        "ppo/approx_kl_k3_nats": aux["k3"] / count,
        "ppo/ratio_mean": aux["ratio"] / count,
        "ppo/ratio_min": aux["ratio_min"],
        "ppo/ratio_max": aux["ratio_max"],
        "ppo/entropy_nats_per_token": masked_sum(entropy_BR, batch.mask_BR) / count,
    }


def _value_loss(params: Params, state, batch: Rollout, scalar: ScalarModel, config: PpoConfig):
    values_BR = response_values(scalar, params, state.frozen, _rows(batch), batch.mask_BR.shape[1])
    loss_sum, n_tokens, aux = clipped_value_loss(
        values_BR, batch.values_BR, batch.returns_BR, batch.mask_BR, clip=config.value_clip
    )
    count = jnp.maximum(n_tokens, 1)
    error_variance = _variance(batch.returns_BR - batch.values_BR, batch.mask_BR)
    return_variance = _variance(batch.returns_BR, batch.mask_BR)
    return loss_sum / count, {
        "ppo/value_loss": loss_sum / count,
        "ppo/value_clip_fraction": aux["clipped"] / count,
        "ppo/explained_variance": 1.0 - error_variance / jnp.maximum(return_variance, 1e-8),
    }


def _ptx_loss(params: Params, state, pretrain: LmBatch, policy: Model) -> jax.Array:
    h_BTD = policy.hidden(params, state.frozen, pretrain.tokens_BT, pretrain.segments_BT, pretrain.positions_BT)
    sums = chunked_nll(partial(policy.unembed, params, state.frozen), h_BTD, pretrain.targets_BT, pretrain.weights_BT)
    return sums.nll_sum / jnp.maximum(sums.weight_sum, 1.0)


def _rollout_metrics(rollout: Rollout, kl: jax.Array) -> Metrics:
    rows = rollout.mask_BR.shape[0]
    k3_BR = kl_estimates(rollout.logp_old_BR, rollout.logp_ref_BR, rollout.mask_BR)[2]
    tokens = jnp.sum(rollout.mask_BR)
    return {
        "ppo/kl_nats_per_sequence": kl,
        "ppo/kl_k3_nats_per_sequence": jnp.sum(k3_BR) / rows,
        "ppo/score": jnp.mean(rollout.scores_B),
        "ppo/reward": jnp.sum(rollout.rewards_BR) / rows,
        "ppo/response_tokens": tokens / rows,
        "ppo/tokens": tokens,
        "ppo/end_rate": jnp.mean(rollout.ended_B.astype(rollout.scores_B.dtype)),
    }


def _next_coefficient(state: TrainState, kl: jax.Array, config: PpoConfig) -> jax.Array:
    coefficient = state.extra["kl_coefficient"]
    if config.kl_target is None:
        return coefficient
    adapted = adapted_kl_coefficient(
        coefficient, kl, target=config.kl_target, horizon=config.kl_horizon, episodes=config.prompts
    )
    is_last = state.step % config.updates == config.updates - 1
    return jnp.where(is_last, adapted, coefficient)


def _variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = masked_sum(x, mask) / count
    return masked_sum(jnp.square(x - mean), mask) / count
