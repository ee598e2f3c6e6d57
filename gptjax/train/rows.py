"""What a language model makes of packed rows: sums over their targets, which shares of a batch add up to."""

from functools import partial

import jax
import jax.numpy as jnp

from gptjax.losses.cross_entropy import NllSums, chunked_nll
from gptjax.model_types import Model, RouterSums
from gptjax.types import LmBatch, Params


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
