"""Masked language modelling: one update on rows some of whose tokens are hidden."""

import jax.numpy as jnp
import optax

from gptjax.losses.cross_entropy import NllSums
from gptjax.model_types import Model
from gptjax.train.accumulate import accumulated, totals
from gptjax.train.router import router_loss, router_metrics
from gptjax.train.rows import row_sums, weight_sum
from gptjax.train.update import advance, step_key
from gptjax.types import LmBatch, Metrics, TrainState


def mlm_step(
    state: TrainState,
    batch: LmBatch,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    loss_chunks: int = 1,
    dropout: bool = False,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update: guess each selected token from both sides of its own document. Without any, the loss is 0.

    Args:
        state: params of `model`, the same as for the next token.
        batch: corrupted tokens; targets are the tokens at the same places, with weight where they were selected
            (see gptjax.data.masking).
        loss_chunks: pieces in which the logits are computed.
        dropout: drop out at the model's rate.
        microbatches: pieces in which the gradient is computed.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    rows, count = batch.tokens_BT.shape[0], weight_sum(batch)

    def share(params, batch, number):
        key = step_key(state, number) if dropout else None
        sums, router = row_sums(params, state.frozen, batch, model, chunks=loss_chunks, causal=False, key=key)
        return sums.nll_sum / count + router_loss(router, rows), (sums, router)

    grads, aux = accumulated(share, state.params, batch, microbatches)
    sums, router = totals(aux)
    metrics = router_metrics(router, rows) | {
        "mlm/nats_per_token": sums.nll_sum / count,
        "mlm/accuracy": sums.correct_sum / count,
        "mlm/tokens": jnp.sum(batch.weights_BT),
        "mlm/row_tokens": jnp.sum(batch.segments_BT > 0),
    }
    after, figures = advance(state, grads, optimizer, loss=sums.nll_sum / count)
    return after, metrics | figures


def mlm_sums(state: TrainState, batch: LmBatch, *, model: Model, loss_chunks: int = 1) -> NllSums:
    """Held-out sums of a batch (no dropout), to be added over batches before dividing."""
    return row_sums(state.params, state.frozen, batch, model, chunks=loss_chunks, causal=False)[0]
