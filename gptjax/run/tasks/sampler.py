"""Answers of a model to prompts, drawn on a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gptjax.data.loader import evaluation_batches, own_rows
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.answers import Answer, answers_in, distinct
from gptjax.generate.engine import SamplingConfig, generate
from gptjax.model_types import Model
from gptjax.run.mesh import batch_rows, fetch, put
from gptjax.run.task import Setup
from gptjax.types import Params, PromptBatch


def sampler(
    model: Model, setup: Setup, tokenizer: Tokenizer, sampling: SamplingConfig
) -> Callable[[Params, PromptBatch, jax.Array, int], list[Answer]]:
    """(params, prompts, key, batch_size) -> one answer to each prompt, in order, compiled once; the batch is rounded up
    to what fills the mesh.

    Prompts are on the host, whole, and every host gets all answers. Repeat a row to get several answers to it, one
    after the other, so that the prompt is prefilled once. Batch i draws from fold_in(key, i).
    """

    pieces = batch_rows(setup.mesh)

    @jax.jit
    def sample(params: Params, prompts: PromptBatch, index_B: jax.Array, key: jax.Array) -> Any:
        how = {"sampling": sampling, "end_id": tokenizer.end_id, "index_B": index_B}
        return generate(model, params, {}, prompts, key, **how)[:2]

    def run(params: Params, prompts: PromptBatch, key: jax.Array, batch_size: int) -> list[Answer]:
        found: list[Answer] = []
        batch_size = -(-batch_size // pieces) * pieces
        for number, batch in enumerate(evaluation_batches(prompts, batch_size)):
            lengths_B = np.maximum(batch.lengths_B, 1)  # a filler row needs one token to attend to
            filled = PromptBatch(tokens_BP=batch.tokens_BP, lengths_B=lengths_B)
            asked, index_B = distinct(filled, pieces)
            own = put(own_rows(asked, setup.share), setup.mesh)
            tokens_BR, mask_BR = fetch(sample(params, own, index_B, jax.random.fold_in(key, number)))
            found += answers_in(np.asarray(tokens_BR), np.asarray(mask_BR), tokenizer)
        return found[: len(prompts.lengths_B)]

    return run
