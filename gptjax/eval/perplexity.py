"""Held-out loss of a language model: nats per token and bits per byte, as ratios of sums."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gptjax.data.loader import evaluation_batches
from gptjax.losses.cross_entropy import NllSums
from gptjax.types import LmBatch


def heldout_loss(
    sums: Callable[[Any], NllSums], rows: LmBatch, batch_size: int, put: Callable[[Any], Any], token_bytes_V: np.ndarray
) -> dict[str, float]:
    """nats_per_token, bits_per_byte, accuracy and perplexity of held-out rows, every target counted once.

    Args:
        sums: batch on the mesh -> weighted sums, no dropout, no z-loss.
        rows: all held-out rows, on the host.
        batch_size: rows at a time; the ragged last batch is filled with rows of weight 0.
        put: host batch -> batch on the mesh.
        token_bytes_V: i32[V], UTF-8 bytes of each token; special tokens have 0 and belong in no target.
    """
    totals = np.zeros(4)
    for batch in evaluation_batches(rows, batch_size):
        totals += np.array([float(x) for x in jax.device_get(sums(put(batch)))])
    nll, weight, _, correct = totals.tolist()
    n_bytes = float(np.sum(np.where(rows.weights_BT > 0, token_bytes_V[rows.targets_BT], 0)))
    loss = nll / max(weight, 1.0)
    return {
        "nats_per_token": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": correct / max(weight, 1.0),
        "bits_per_byte": nll / (math.log(2) * max(n_bytes, 1.0)),
    }
