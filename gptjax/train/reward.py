"""Reward modelling: one update on prompts whose candidate responses were ranked."""

import jax
import jax.numpy as jnp
import optax

from gptjax import dims
from gptjax.losses.preference import ranking_loss
from gptjax.train.update import advance
from gptjax.types import Metrics, Params, RewardBatch, ScalarModel, TrainState


def candidate_scores(params: Params, frozen: Params, batch: RewardBatch, *, model: ScalarModel) -> jax.Array:
    """f32[B, C], the model's value at the last real token of each candidate; one forward pass over B x C rows."""
    batch_size, candidates, length = batch.tokens_BCT.shape
    rows = batch_size * candidates
    tokens_BT = jnp.reshape(batch.tokens_BCT, (rows, length), out_sharding=dims.act_spec("BT"))
    lengths_B = jnp.reshape(batch.lengths_BC, (rows,), out_sharding=dims.act_spec("B"))
    index_BT = jnp.broadcast_to(
        jnp.arange(length, dtype=jnp.int32)[None], (rows, length), out_sharding=dims.act_spec("BT")
    )
    segments_BT = (index_BT < lengths_B[:, None]).astype(jnp.int32)
    values_BT = model.values(params, frozen, tokens_BT, segments_BT, index_BT)
    last_BT = index_BT == lengths_B[:, None] - 1
    scores_B = jnp.sum(jnp.where(last_BT, values_BT, 0.0), axis=1)
    return jnp.reshape(scores_B, (batch_size, candidates), out_sharding=dims.act_spec("BC"))


def reward_step(
    state: TrainState, batch: RewardBatch, *, model: ScalarModel, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """One update; all pairs of a prompt belong to one batch element, and dropout is off.

    Source: Ouyang et al. 2022, arXiv:2203.02155, equation 1 and appendix C.2.
    """

    def loss_fn(params):
        scores_BC = candidate_scores(params, state.frozen, batch, model=model)
        loss_sum, n_prompts, aux = ranking_loss(scores_BC, batch.ranks_BC)
        return loss_sum / jnp.maximum(n_prompts, 1), (scores_BC, n_prompts, aux)

    (loss, (scores_BC, n_prompts, aux)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    present_BC = batch.ranks_BC > 0
    n_candidates = jnp.maximum(jnp.sum(present_BC), 1)
    mean = jnp.sum(jnp.where(present_BC, scores_BC, 0.0)) / n_candidates
    variance = jnp.sum(jnp.where(present_BC, jnp.square(scores_BC - mean), 0.0)) / n_candidates
    metrics = {
        "reward/loss_nats": loss,
        "reward/accuracy": aux["correct"] / jnp.maximum(aux["pairs"], 1),
        "reward/prompts": n_prompts,
        "reward/pairs": aux["pairs"],
        "reward/tokens": jnp.sum(batch.lengths_BC),
        "reward/score_mean": mean,
        "reward/score_std": jnp.sqrt(variance),
        "optim/grad_norm": optax.tree.norm(grads),
    }
    return advance(state, grads, optimizer), metrics
