"""Language modelling: one next-token update on packed documents."""

import jax
import jax.numpy as jnp
import optax

from gptjax.losses.cross_entropy import NllSums
from gptjax.model_types import Model
from gptjax.train.accumulate import accumulated, totals
from gptjax.train.router import router_loss, router_metrics
from gptjax.train.rows import row_sums, weight_sum
from gptjax.train.update import advance, step_key
from gptjax.types import LmBatch, Metrics, TrainState


def lm_step(
    state: TrainState,
    batch: LmBatch,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    z_loss: float = 0.0,
    loss_chunks: int = 1,
    dropout: bool = False,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One next-token update. Pure: jit, mesh, donation and logging belong to the driver.

    Args:
        state: params of `model`.
        batch: packed rows, each target counted by its weight.
        z_loss: coefficient of the mean squared log-sum-exp, kept apart from the cross-entropy in the metrics.
        loss_chunks: pieces in which the logits are computed.
        dropout: drop out at the model's rate.
        microbatches: pieces in which the gradient is computed.
    """
    rows, count = batch.tokens_BT.shape[0], weight_sum(batch)

    def share(params, batch, number):
        key = step_key(state, number) if dropout else None
        sums, router = row_sums(params, state.frozen, batch, model, chunks=loss_chunks, key=key)
        return (sums.nll_sum + z_loss * sums.z_sum) / count + router_loss(router, rows), (sums, router)

    grads, aux = accumulated(share, state.params, batch, microbatches)
    sums, router = totals(aux)
    means = jax.tree.map(lambda x: x / count, sums)
    metrics = router_metrics(router, rows) | {
        "lm/nats_per_token": means.nll_sum,
        "lm/z_nats2": means.z_sum,
        "lm/accuracy": means.correct_sum,
        "lm/tokens": jnp.sum(batch.weights_BT),
    }
    after, figures = advance(state, grads, optimizer, loss=means.nll_sum + z_loss * means.z_sum)
    return after, metrics | figures


def lm_sums(state: TrainState, batch: LmBatch, *, model: Model, loss_chunks: int = 1) -> NllSums:
    """Held-out sums of a batch (no dropout, no z-loss), to be added over batches before dividing."""
    return row_sums(state.params, state.frozen, batch, model, chunks=loss_chunks)[0]
