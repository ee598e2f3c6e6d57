"""Supervised fine-tuning: one update on packed conversations; only what the assistant says is a target."""

import jax.numpy as jnp
import optax

from gptjax.model_types import Model
from gptjax.train.accumulate import accumulated, totals
from gptjax.train.router import router_loss, router_metrics
from gptjax.train.rows import row_sums, weight_sum
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
    rows, count = batch.tokens_BT.shape[0], weight_sum(batch)

    def share(params, batch, number):
        key = step_key(state, number) if dropout else None
        sums, router = row_sums(params, state.frozen, batch, model, chunks=loss_chunks, key=key)
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
