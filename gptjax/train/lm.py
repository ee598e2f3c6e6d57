"""Language modelling: one next-token update on packed documents."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from gptjax.losses.cross_entropy import chunked_nll
from gptjax.train.update import advance, step_key
from gptjax.types import LmBatch, Metrics, Model, TrainState


def lm_step(
    state: TrainState,
    batch: LmBatch,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    z_loss: float = 0.0,
    loss_chunks: int = 1,
    dropout: bool = False,
) -> tuple[TrainState, Metrics]:
    """One next-token update. Pure: jit, mesh, donation and logging belong to the driver.

    Args:
        state: params of `model`.
        batch: packed rows, each target counted by its weight.
        z_loss: coefficient of the mean squared log-sum-exp, kept apart from the cross-entropy in the metrics.
        loss_chunks: pieces in which the logits are computed.
        dropout: drop out at the model's rate.
    """
    key = step_key(state) if dropout else None

    def loss_fn(params):
        h_BTD = model.hidden(params, state.frozen, batch.tokens_BT, batch.segments_BT, batch.positions_BT, key=key)
        unembed = partial(model.unembed, params, state.frozen)
        sums = chunked_nll(unembed, h_BTD, batch.targets_BT, batch.weights_BT, chunks=loss_chunks)
        count = jnp.maximum(sums.weight_sum, 1.0)
        return (sums.nll_sum + z_loss * sums.z_sum) / count, jax.tree.map(lambda x: x / count, sums)

    (loss, means), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    metrics = {
        "lm/nats_per_token": means.nll_sum,
        "lm/z_nats2": means.z_sum,
        "lm/accuracy": means.correct_sum,
        "lm/tokens": jnp.sum(batch.weights_BT),
    }
    after, figures = advance(state, grads, optimizer, loss=loss)
    return after, metrics | figures


def lm_sums(state: TrainState, batch: LmBatch, *, model: Model, loss_chunks: int = 1):
    """Held-out sums of a batch (no dropout, no z-loss), to be added over batches before dividing."""
    h_BTD = model.hidden(state.params, state.frozen, batch.tokens_BT, batch.segments_BT, batch.positions_BT)
    unembed = partial(model.unembed, state.params, state.frozen)
    return chunked_nll(unembed, h_BTD, batch.targets_BT, batch.weights_BT, chunks=loss_chunks)
