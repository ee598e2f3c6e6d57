"""From prompts to a rollout: sample, score, reference log-probabilities, advantages. Pure given the key."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import reshard

from gptjax import dims
from gptjax.generate.engine import SamplingConfig, generate, prompt_layout
from gptjax.losses.returns import gae, kl_shaped_rewards, whitened
from gptjax.model_types import Model, ScalarModel, ValueHead
from gptjax.train.normalise import normalised
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.reference import reference_params
from gptjax.train.response import hidden_logp, response_hidden, response_logp, response_values
from gptjax.types import Drawn, Params, PpoBatch, PromptBatch, Rollout, TrainState


def collect(
    state: TrainState,
    frozen_models: dict[str, Any],
    batch: PpoBatch,
    key: jax.Array,
    *,
    policy: Model,
    scalar: ScalarModel,
    config: PpoConfig,
    end_id: int,
    head: ValueHead | None = None,
) -> Rollout:
    """Sample a response to each prompt and compute everything that the PPO updates on it need.

    A response whose score is not finite has no token in the mask: no loss, no statistic and no gradient sees it.

    Args:
        state: params {"policy", "value"}; extra {"kl_coefficient"}.
        frozen_models: reference (policy parameters), reward (parameters of `scalar`), reward_gain, reward_bias; the
            reference alone if the answers are there with their scores.
        batch: left-padded prompts, and pre-training rows for the updates if PPO-ptx is on.
        key: PRNG key of this rollout.
        policy: the language model.
        scalar: the reward model, and the value model if there is no head.
        config: PPO's settings.
        end_id: the end-of-turn token.
        head: the value head on the policy's trunk, if there is one.
    """
    drawn = batch.prompts.drawn
    if drawn is None:
        sampling = SamplingConfig(max_new_tokens=config.response_tokens, temperature=config.temperature)
        about = {"policy": policy, "sampling": sampling, "end_id": end_id}
        drawn = draw(state.params["policy"], state.frozen, batch.prompts, key, **about)
    tokens_BR, mask_BR = drawn.tokens_BR, drawn.mask_BR
    tokens_BT, segments_BT, positions_BT = full_rows(batch.prompts, tokens_BR, mask_BR)
    rows = {"tokens_BT": tokens_BT, "segments_BT": segments_BT, "positions_BT": positions_BT}
    ended_B = jnp.any(mask_BR & (tokens_BR == end_id), axis=1)
    scores_B = finished_scores(answer_scores(drawn, scalar, frozen_models, state.frozen, rows), ended_B, config)
    scored_B = jnp.isfinite(scores_B)
    mask_BR &= scored_B[:, None]
    responses = tokens_BR.shape[1]
    logp_old_BR, values_BR = _old_outputs(state, rows, responses, policy, scalar, head, config)
    reference = reference_params(frozen_models["reference"], state.params["policy"])
    logp_ref_BR, *_ = response_logp(
        policy, params=reference, frozen=state.frozen, rows=rows, responses=responses, temperature=config.temperature
    )
    values_BR = jnp.where(mask_BR, values_BR, 0.0)
    scores_B = _clipped(jnp.where(scored_B, scores_B, 0.0), config)
    coefficient = state.extra["kl_coefficient"]
    rewards_BR = kl_shaped_rewards(scores_B, logp_old_BR, logp_ref_BR, mask_BR, kl_coefficient=coefficient)
    rewards_BR, advantages_BR, returns_BR = _estimates(rewards_BR, values_BR, mask_BR, config)
    return Rollout(
        **rows,
        mask_BR=mask_BR,
        logp_old_BR=logp_old_BR,
        logp_ref_BR=logp_ref_BR,
        values_BR=values_BR,
        rewards_BR=rewards_BR,
        advantages_BR=advantages_BR,
        returns_BR=returns_BR,
        scores_B=scores_B,
        ended_B=ended_B,
        pretrain=batch.pretrain,
        logp_sampler_BR=drawn.logp_sampler_BR,
        version=state.step // config.updates,
    )


def draw(
    params: Params,
    frozen: Params,
    prompts: PromptBatch,
    key: jax.Array,
    *,
    policy: Model,
    sampling: SamplingConfig,
    end_id: int,
) -> Drawn:
    """A response to each prompt, not scored yet."""
    tokens_BR, mask_BR, logp_BR = generate(
        policy, params, frozen, prompts, key, sampling=sampling, end_id=end_id, keep_logp=True
    )
    return Drawn(tokens_BR=tokens_BR, mask_BR=mask_BR, logp_sampler_BR=logp_BR)


def answer_scores(
    drawn: Drawn, scalar: ScalarModel, frozen_models: dict[str, Any], frozen: Params, rows: dict[str, jax.Array]
) -> jax.Array:
    """f32[B], a program's scores if the responses have them, else those of the reward model after normalisation."""
    if drawn.scores_B is not None:
        return drawn.scores_B
    return normalised(last_score(scalar, frozen_models["reward"], frozen, rows), frozen_models)


def full_rows(prompts: PromptBatch, tokens_BR: jax.Array, mask_BR: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens_BT, segments_BT, positions_BT): prompt and response in one row, what follows the end as padding."""
    segments_BP, _ = prompt_layout(prompts.lengths_B, prompts.tokens_BP.shape[1])
    tokens_BT = jnp.concatenate([prompts.tokens_BP, tokens_BR], axis=1)
    segments_BT = jnp.concatenate([segments_BP, mask_BR.astype(jnp.int32)], axis=1)
    positions_BT = jnp.maximum(jnp.cumsum(segments_BT, axis=1) - 1, 0)
    spec = dims.act_spec("BT")
    return reshard(tokens_BT, spec), reshard(segments_BT, spec), reshard(positions_BT, spec)


def last_score(model: ScalarModel, params: Params, frozen: Params, rows: dict[str, jax.Array]) -> jax.Array:
    """f32[B], the model's value at the last real token of each row."""
    values_BT, _ = model.values(params, frozen, rows["tokens_BT"], rows["segments_BT"], rows["positions_BT"])
    last_B1 = jnp.max(jnp.where(rows["segments_BT"] > 0, rows["positions_BT"], -1), axis=1, keepdims=True)
    is_last_BT = (rows["segments_BT"] > 0) & (rows["positions_BT"] == last_B1)
    return jnp.sum(jnp.where(is_last_BT, values_BT, 0.0), axis=1)


def finished_scores(scores_B: jax.Array, ended_B: jax.Array, config: PpoConfig) -> jax.Array:
    """The missing-end rule: a response without end-of-turn gets a fixed score, or its own minus a penalty."""
    if config.missing_end_score is not None:
        return jnp.where(ended_B, scores_B, config.missing_end_score)
    return scores_B - jnp.where(ended_B, 0.0, config.missing_end_penalty)


def _clipped(scores_B: jax.Array, config: PpoConfig) -> jax.Array:
    return scores_B if config.score_clip is None else jnp.clip(scores_B, -config.score_clip, config.score_clip)


def _old_outputs(
    state: TrainState,
    rows: dict[str, jax.Array],
    responses: int,
    policy: Model,
    scalar: ScalarModel,
    head: ValueHead | None,
    config: PpoConfig,
) -> tuple[jax.Array, jax.Array]:
    """(logp_BR, values_BR) of the sampling policy and its critic by the forward pass that trains them."""
    params, frozen = state.params, state.frozen
    h_BRD, _ = response_hidden(policy, params["policy"], frozen, rows, responses)
    logp_BR, _ = hidden_logp(policy, params["policy"], frozen, h_BRD, rows["tokens_BT"], config.temperature)
    if head is None:
        return logp_BR, response_values(scalar, params["value"], frozen, rows, responses)[0]
    return logp_BR, head.values(params["value"], h_BRD)


def _estimates(
    rewards_BR: jax.Array, values_BR: jax.Array, mask_BR: jax.Array, config: PpoConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(rewards, advantages, returns), whitened where that is done over the whole rollout."""
    if config.whiten_rewards == "rollout":
        rewards_BR = whitened(rewards_BR, mask_BR, shift_mean=False)
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, discount=config.discount, trace=config.trace)
    if config.whiten_advantages == "rollout":
        advantages_BR = whitened(advantages_BR, mask_BR)
    return rewards_BR, advantages_BR, returns_BR
