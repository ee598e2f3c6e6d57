"""Held-out loss of a language model: nats per token and bits per byte, as ratios of sums."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gptjax.data.loader import EVERYTHING, Share, evaluation_batches
from gptjax.losses.cross_entropy import NllSums
from gptjax.types import LmBatch


def heldout_loss(
    sums: Callable[[Any], NllSums],
    rows: LmBatch,
    batch_size: int,
    put: Callable[[Any], Any],
    token_bytes_V: np.ndarray | None = None,
    *,
    share: Share = EVERYTHING,
) -> dict[str, float]:
    """nats_per_token, perplexity and accuracy of held-out rows, every target counted once; bits_per_byte if asked.

    Args:
        sums: batch on the mesh -> weighted sums, no dropout; its z_sum is left out of every figure.
        rows: all held-out rows, on the host.
        batch_size: rows at a time; the ragged last batch is filled with rows of weight 0.
        put: host batch -> batch on the mesh.
        token_bytes_V: i32[V], UTF-8 bytes of each token. Targets without any (special tokens) enter neither the nats
            nor the bytes of bits_per_byte, which takes a second pass if there are some. None: no bits_per_byte.
        share: what this host puts of each batch; `sums` are those of the whole batch on every host.
    """
    nll, weight, correct = _totals(sums, rows, batch_size, put, share)
    loss = nll / max(weight, 1.0)
    figures = {
        "nats_per_token": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": correct / max(weight, 1.0),
    }
    if token_bytes_V is None:
        return figures
    bytes_BT = token_bytes_V[rows.targets_BT]
    special_BT = (bytes_BT == 0) & (rows.weights_BT > 0)
    if special_BT.any():
        text = dataclasses.replace(rows, weights_BT=np.where(special_BT, 0, rows.weights_BT))
        nll, _, _ = _totals(sums, text, batch_size, put, share)
    n_bytes = float(np.sum(rows.weights_BT * bytes_BT, dtype=np.float64))
    return figures | {"bits_per_byte": nll / (math.log(2) * max(n_bytes, 1.0))}


def _totals(
    sums: Callable[[Any], NllSums], rows: LmBatch, batch_size: int, put: Callable[[Any], Any], share: Share
) -> tuple[float, float, float]:
    """(nats, weight, greedy hits), summed over batches in double precision."""
    totals = np.zeros(4)
    for batch in evaluation_batches(rows, batch_size, share):
        totals += np.array([float(x) for x in jax.device_get(sums(put(batch)))])
    nll, weight, _, correct = totals.tolist()
    return nll, weight, correct
