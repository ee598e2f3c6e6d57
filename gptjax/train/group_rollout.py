"""From prompts to groups: several answers to each, scored, compared within their group. Pure given the key."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gptjax import dims
from gptjax.generate.engine import SamplingConfig
from gptjax.losses.groups import group_advantages, leave_one_out_advantages
from gptjax.losses.policy import kl_estimates
from gptjax.model_types import Model, ScalarModel
from gptjax.train.grpo import GrpoConfig, RlooLoss
from gptjax.train.response import response_logp
from gptjax.train.rollout import answer_scores, draw, full_rows
from gptjax.types import GroupRollout, PromptBatch, TrainState


def collect_groups(
    state: TrainState,
    frozen_models: dict[str, Any],
    batch: PromptBatch,
    key: jax.Array,
    *,
    policy: Model,
    scalar: ScalarModel,
    config: GrpoConfig,
    end_id: int,
) -> GroupRollout:
    """Sample config.group_size answers to each prompt and compute everything that the updates on them need.

    Args:
        state: params of `policy`.
        frozen_models: reference (policy parameters), reward (parameters of `scalar`), reward_gain, reward_bias; the
            reference alone if the answers are there with their scores.
        batch: left-padded prompts.
        key: PRNG key of this rollout.
        policy: the language model.
        scalar: the reward model.
        config: settings.
        end_id: the end-of-turn token.
    """
    prompts, drawn = repeated(batch, config.group_size), batch.drawn
    if drawn is None:
        sampling = SamplingConfig(max_new_tokens=config.response_tokens, temperature=config.temperature)
        drawn = draw(state.params, state.frozen, prompts, key, policy=policy, sampling=sampling, end_id=end_id)
    tokens_BR, mask_BR = drawn.tokens_BR, drawn.mask_BR
    tokens_BT, segments_BT, positions_BT = full_rows(prompts, tokens_BR, mask_BR)
    rows = {"tokens_BT": tokens_BT, "segments_BT": segments_BT, "positions_BT": positions_BT}
    logp = partial(response_logp, policy, rows=rows, responses=tokens_BR.shape[1], temperature=config.temperature)
    logp_old_BR, _, _ = logp(params=state.params, frozen=state.frozen)
    logp_ref_BR, _, _ = logp(params=frozen_models["reference"], frozen=state.frozen)
    ended_B = jnp.any(mask_BR & (tokens_BR == end_id), axis=1)
    scores_B = answer_scores(drawn, scalar, frozen_models, state.frozen, rows)
    grouped = partial(_grouped, group_size=config.group_size)
    scores_BC = grouped(scores_B, "BC")
    mask_BCR, logp_old_BCR, logp_ref_BCR = (grouped(x, "BCR") for x in (mask_BR, logp_old_BR, logp_ref_BR))
    judged = judged_groups(scores_BC, grouped(ended_B, "BC"), logp_old_BCR, logp_ref_BCR, mask_BCR, config)
    return GroupRollout(
        tokens_BCT=grouped(tokens_BT, "BCT"),
        segments_BCT=grouped(segments_BT, "BCT"),
        positions_BCT=grouped(positions_BT, "BCT"),
        mask_BCR=mask_BCR,
        logp_old_BCR=logp_old_BCR,
        logp_ref_BCR=logp_ref_BCR,
        ended_BC=grouped(ended_B, "BC"),
        **judged,
    )


def judged_groups(
    scores_BC: jax.Array,
    ended_BC: jax.Array,
    logp_old_BCR: jax.Array,
    logp_ref_BCR: jax.Array,
    mask_BCR: jax.Array,
    config: GrpoConfig,
) -> dict[str, jax.Array]:
    """scores, rewards, advantages and counted samples ([B, C] each) after the truncation rule.

    A sample whose reward is not finite is unscored: it is out of the group's baseline and of the loss.
    """
    if config.truncated == "penalise":
        scores_BC = scores_BC - jnp.where(ended_BC, 0.0, config.missing_end_penalty)
    k1_BC = jnp.sum(kl_estimates(logp_old_BCR, logp_ref_BCR, mask_BCR)[0], axis=2)
    rewards_BC = scores_BC - config.kl_coefficient * k1_BC if config.kl_in_reward else scores_BC
    scored_BC = jnp.isfinite(scores_BC) & jnp.isfinite(k1_BC) & jnp.any(mask_BCR, axis=2)
    if config.truncated == "mask":
        scored_BC &= ended_BC
    if isinstance(config.loss, RlooLoss):
        advantages_BC, counted_BC = leave_one_out_advantages(rewards_BC, scored_BC)
    else:
        how = config.loss
        advantages_BC, counted_BC = group_advantages(rewards_BC, scored_BC, scale=how.scale, ddof=how.ddof, eps=how.eps)
    return {
        "scores_BC": scores_BC,
        "rewards_BC": rewards_BC,
        "advantages_BC": advantages_BC,
        "counted_BC": counted_BC,
    }


def repeated(prompts: PromptBatch, times: int) -> PromptBatch:
    """Each prompt `times` times in a row, on the device that holds it."""
    batch_size, columns = prompts.tokens_BP.shape
    tokens_BCP = jnp.broadcast_to(
        prompts.tokens_BP[:, None], (batch_size, times, columns), out_sharding=dims.act_spec("BCP")
    )
    lengths_BC = jnp.broadcast_to(prompts.lengths_B[:, None], (batch_size, times), out_sharding=dims.act_spec("BC"))
    return PromptBatch(
        tokens_BP=jnp.reshape(tokens_BCP, (batch_size * times, columns), out_sharding=dims.act_spec("BP")),
        lengths_B=jnp.reshape(lengths_BC, (batch_size * times,), out_sharding=dims.act_spec("B")),
    )


def _grouped(x: jax.Array, letters: str, *, group_size: int) -> jax.Array:
    """[B C, ...] -> [B, C, ...]."""
    return jnp.reshape(x, (-1, group_size, *x.shape[1:]), out_sharding=dims.act_spec(letters))
