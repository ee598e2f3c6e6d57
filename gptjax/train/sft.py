"""Supervised fine-tuning: one update on packed conversations; only what the assistant says is a target."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from gptjax.losses.cross_entropy import chunked_nll
from gptjax.train.update import advance, step_key
from gptjax.types import LmBatch, Metrics, Model, TrainState


def sft_step(
    state: TrainState,
    batch: LmBatch,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    loss_chunks: int = 1,
    dropout: bool = False,
) -> tuple[TrainState, Metrics]:
    """One update on demonstrations.

    The batch decides the reduction: weights of 1 give the mean over target tokens, weights of 1 / (targets of the
    conversation) the mean over conversations.

    Args:
        state: params of `model`.
        batch: packed conversations; weights are zero outside the assistant's turns.
        loss_chunks: pieces in which the logits are computed.
        dropout: drop out at the model's rate.

    Source: Ouyang et al. 2022, arXiv:2203.02155, appendix C.1.
    """
    key = step_key(state) if dropout else None

    def loss_fn(params):
        h_BTD = model.hidden(params, state.frozen, batch.tokens_BT, batch.segments_BT, batch.positions_BT, key=key)
        unembed = partial(model.unembed, params, state.frozen)
        sums = chunked_nll(unembed, h_BTD, batch.targets_BT, batch.weights_BT, chunks=loss_chunks)
        count = jnp.where(sums.weight_sum > 0, sums.weight_sum, 1.0)
        return sums.nll_sum / count, sums.correct_sum / count

    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    metrics = {
        "sft/nats_per_token": loss,
        "sft/accuracy": accuracy,
        "sft/tokens": jnp.sum(batch.weights_BT > 0),
        "sft/row_tokens": jnp.sum(batch.segments_BT > 0),
    }
    after, figures = advance(state, grads, optimizer, loss=loss)
    return after, metrics | figures
