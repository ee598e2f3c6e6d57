"""Supervised fine-tuning: one update on packed conversations; only what the assistant says is a target."""

import optax

from gptjax.model_types import Model
from gptjax.train.rows import rows_step
from gptjax.types import LmBatch, Metrics, TrainState


def sft_step(
    state: TrainState,
    batch: LmBatch,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    loss_chunks: int = 1,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update on demonstrations.

    The batch decides the reduction: weights of 1 give the mean over target tokens, weights of 1 / (targets of the
    conversation) the mean over conversations.

    Args:
        batch: packed conversations; weights are zero outside the assistant's turns.
        state, model, optimizer, loss_chunks, microbatches: see `rows_step`.

    Source: Ouyang et al. 2022, arXiv:2203.02155, appendix C.1.
    """
    return rows_step(
        state, batch, name="sft", model=model, optimizer=optimizer, loss_chunks=loss_chunks, microbatches=microbatches
    )
