"""Language modelling: one next-token update on packed documents."""

import optax

from gptjax.model_types import Model
from gptjax.train.rows import rows_step
from gptjax.types import LmBatch, Metrics, TrainState


def lm_step(
    state: TrainState,
    batch: LmBatch,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    z_loss: float = 0.0,
    loss_chunks: int = 1,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One next-token update. Pure: jit, mesh, donation and logging belong to the driver.

    Args:
        batch: packed documents, each target counted by its weight.
        state, model, optimizer, z_loss, loss_chunks, microbatches: see `rows_step`.
    """
    return rows_step(
        state,
        batch,
        name="lm",
        model=model,
        optimizer=optimizer,
        z_loss=z_loss,
        loss_chunks=loss_chunks,
        microbatches=microbatches,
    )
