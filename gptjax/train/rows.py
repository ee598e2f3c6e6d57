"""What a language model makes of packed rows, and the update that lm, mlm and sft share."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from gptjax.losses.cross_entropy import NllSums, chunked_nll
from gptjax.model_types import Model, RouterSums
from gptjax.train.accumulate import accumulated, totals
from gptjax.train.router import router_loss, router_metrics
from gptjax.train.update import advance, step_key
from gptjax.types import LmBatch, Metrics, Params, TrainState


def rows_step(
    state: TrainState,
    batch: LmBatch,
    *,
    name: str,
    model: Model,
    optimizer: optax.GradientTransformation,
    causal: bool = True,
    z_loss: float = 0.0,
    loss_chunks: int = 1,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update on the weighted mean over the targets of packed rows; without any, the loss is 0.

    Args:
        state: params of `model`, which drops out at its own rate.
        batch: packed rows, each target counted by its weight.
        name: of the objective, before its figures.
        model: the language model.
        optimizer: the update rule.
        causal: whether a position sees only what stands before it.
        z_loss: coefficient of the mean squared log-sum-exp, kept apart from the cross-entropy in the metrics.
        loss_chunks: pieces in which the logits are computed.
        microbatches: pieces in which the gradient is computed.
    """
    rows, count = batch.tokens_BT.shape[0], weight_sum(batch)

    def share(params, batch, number):
        key = step_key(state, number)
        sums, router = row_sums(params, state.frozen, batch, model, chunks=loss_chunks, causal=causal, key=key)
        return (sums.nll_sum + z_loss * sums.z_sum) / count + router_loss(router, rows), (sums, router)

    grads, aux = accumulated(share, state.params, batch, microbatches)
    sums, router = totals(aux)
    means = jax.tree.map(lambda x: x / count, sums)
    metrics = router_metrics(router, rows) | {
        f"{name}/nats_per_token": means.nll_sum,
        f"{name}/z_nats2": means.z_sum,
        f"{name}/accuracy": means.correct_sum,
        f"{name}/tokens": jnp.sum(batch.weights_BT > 0),
        f"{name}/row_tokens": jnp.sum(batch.segments_BT > 0),
    }
    after, figures = advance(state, grads, optimizer, loss=means.nll_sum + z_loss * means.z_sum)
    return after, metrics | figures


def heldout_sums(
    state: TrainState, batch: LmBatch, *, model: Model, causal: bool = True, loss_chunks: int = 1
) -> NllSums:
    """Held-out sums of a batch (no dropout, no z-loss), to be added over batches before dividing."""
    return row_sums(state.params, state.frozen, batch, model, chunks=loss_chunks, causal=causal)[0]


def row_sums(
    params: Params,
    frozen: Params,
    batch: LmBatch,
    model: Model,
    *,
    chunks: int = 1,
    causal: bool = True,
    key: jax.Array | None = None,
) -> tuple[NllSums, RouterSums | None]:
    """(sums over the targets, each counted by its weight; the routers' sums).

    Args:
        params: of `model`.
        frozen: parameters that are not trained.
        batch: packed rows.
        model: the language model.
        chunks: pieces in which the logits are computed.
        causal: whether a position sees only what stands before it.
        key: of dropout; None: there is none.
    """
    rows = batch.tokens_BT, batch.segments_BT, batch.positions_BT
    h_BTD, router = model.hidden(params, frozen, *rows, causal=causal, key=key)
    unembed = partial(model.unembed, model.gather_unembedding(params), frozen)
    return chunked_nll(unembed, h_BTD, batch.targets_BT, batch.weights_BT, chunks=chunks), router


def weight_sum(batch: LmBatch) -> jax.Array:
    """f32[], what sums over the targets are divided by: the sum of their weights, or 1 where there is no target."""
    total = jnp.sum(batch.weights_BT)
    return jnp.where(total > 0, total, 1.0)
