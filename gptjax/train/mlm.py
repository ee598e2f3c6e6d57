"""Masked language modelling: one update on rows some of whose tokens are hidden."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from gptjax.losses.cross_entropy import NllSums, chunked_nll
from gptjax.train.update import advance, step_key
from gptjax.types import LmBatch, Metrics, Model, Params, TrainState


def mlm_step(
    state: TrainState,
    batch: LmBatch,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    loss_chunks: int = 1,
    dropout: bool = False,
) -> tuple[TrainState, Metrics]:
    """One update: guess each selected token from both sides of its own document. Without any, the loss is 0.

    Args:
        state: params of `model`, the same as for the next token.
        batch: corrupted tokens; targets are the tokens at the same places, with weight where they were selected
            (see gptjax.data.masking).
        loss_chunks: pieces in which the logits are computed.
        dropout: drop out at the model's rate.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    key = step_key(state) if dropout else None

    def loss_fn(params):
        sums = _sums(params, state.frozen, batch, model, loss_chunks, key)
        count = jnp.maximum(sums.weight_sum, 1.0)
        return sums.nll_sum / count, sums.correct_sum / count

    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    metrics = {
        "mlm/nats_per_token": loss,
        "mlm/accuracy": accuracy,
        "mlm/tokens": jnp.sum(batch.weights_BT),
        "mlm/row_tokens": jnp.sum(batch.segments_BT > 0),
    }
    after, figures = advance(state, grads, optimizer, loss=loss)
    return after, metrics | figures


def mlm_sums(state: TrainState, batch: LmBatch, *, model: Model, loss_chunks: int = 1) -> NllSums:
    """Held-out sums of a batch (no dropout), to be added over batches before dividing."""
    return _sums(state.params, state.frozen, batch, model, loss_chunks, None)


def _sums(params: Params, frozen: Params, batch: LmBatch, model: Model, chunks: int, key: jax.Array | None) -> NllSums:
    rows = batch.tokens_BT, batch.segments_BT, batch.positions_BT
    h_BTD = model.hidden(params, frozen, *rows, causal=False, key=key)
    return chunked_nll(partial(model.unembed, params, frozen), h_BTD, batch.targets_BT, batch.weights_BT, chunks=chunks)
