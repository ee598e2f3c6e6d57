"""Supervised fine-tuning: one update on packed conversations; only what the assistant says is a target."""

from functools import partial

import jax.numpy as jnp
import optax

from gptjax.losses.cross_entropy import chunked_nll
from gptjax.model_types import Model
from gptjax.train.accumulate import accumulated, totals
from gptjax.train.router import router_loss, router_metrics
from gptjax.train.update import advance, step_key
from gptjax.types import LmBatch, Metrics, TrainState


def sft_step(
    state: TrainState,
    batch: LmBatch,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    loss_chunks: int = 1,
    dropout: bool = False,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update on demonstrations.

    The batch decides the reduction: weights of 1 give the mean over target tokens, weights of 1 / (targets of the
    conversation) the mean over conversations.

    Args:
        state: params of `model`.
        batch: packed conversations; weights are zero outside the assistant's turns.
        loss_chunks: pieces in which the logits are computed.
        dropout: drop out at the model's rate.
        microbatches: pieces in which the gradient is computed.

    Source: Ouyang et al. 2022, arXiv:2203.02155, appendix C.1.
    """
    rows, weight_sum = batch.tokens_BT.shape[0], jnp.sum(batch.weights_BT)
    count = jnp.where(weight_sum > 0, weight_sum, 1.0)

    def share(params, batch, number):
        key = step_key(state, number) if dropout else None
        hidden = partial(model.hidden, params, state.frozen, key=key)
        h_BTD, router = hidden(batch.tokens_BT, batch.segments_BT, batch.positions_BT)
        unembed = partial(model.unembed, model.gather_unembedding(params), state.frozen)
        sums = chunked_nll(unembed, h_BTD, batch.targets_BT, batch.weights_BT, chunks=loss_chunks)
        return sums.nll_sum / count + router_loss(router, rows), (sums, router)

    grads, aux = accumulated(share, state.params, batch, microbatches)
    sums, router = totals(aux)
    metrics = router_metrics(router, rows) | {
        "sft/nats_per_token": sums.nll_sum / count,
        "sft/accuracy": sums.correct_sum / count,
        "sft/tokens": jnp.sum(batch.weights_BT > 0),
        "sft/row_tokens": jnp.sum(batch.segments_BT > 0),
    }
    after, figures = advance(state, grads, optimizer, loss=sums.nll_sum / count)
    return after, metrics | figures
