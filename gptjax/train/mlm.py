"""Masked language modelling: one update on rows some of whose tokens are hidden."""

import optax

from gptjax.model_types import Model
from gptjax.train.rows import rows_step
from gptjax.types import LmBatch, Metrics, TrainState


def mlm_step(
    state: TrainState,
    batch: LmBatch,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    loss_chunks: int = 1,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update: guess each selected token from both sides of its own document.

    Args:
        batch: corrupted tokens; targets are the tokens at the same places, with weight where they were selected
            (see gptjax.data.masking).
        state, model, optimizer, loss_chunks, microbatches: see `rows_step`; params are the same as for the next token.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    return rows_step(
        state,
        batch,
        name="mlm",
        model=model,
        optimizer=optimizer,
        causal=False,
        loss_chunks=loss_chunks,
        microbatches=microbatches,
    )
