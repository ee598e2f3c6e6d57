"""Answers of a model to prompts, drawn on a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.answers import Answer, answers
from gptjax.generate.engine import SamplingConfig, generate
from gptjax.model_types import Model
from gptjax.run.mesh import batch_rows, fetch, put
from gptjax.run.task import Setup
from gptjax.types import Params, PromptBatch


def sampler(
    model: Model, setup: Setup, tokenizer: Tokenizer, sampling: SamplingConfig
) -> Callable[[Params, PromptBatch, jax.Array, int], list[Answer]]:
    """(params, prompts, key, batch_size) -> answers, compiled once."""

    @jax.jit
    def sample(params: Params, prompts: PromptBatch, index_B: jax.Array, key: jax.Array) -> Any:
        return generate(model, params, {}, prompts, key, sampling=sampling, end_id=tokenizer.end_id, index_B=index_B)

    def run(params: Params, prompts: PromptBatch, key: jax.Array, batch_size: int) -> list[Answer]:
        return answers(
            lambda batch, index_B, key: fetch(sample(params, batch, index_B, key)),
            prompts,
            key,
            batch_size=batch_size,
            share=setup.share,
            put=partial(put, mesh=setup.mesh),
            decode=tokenizer.decode,
            end_id=tokenizer.end_id,
            multiple=batch_rows(setup.mesh),
        )

    return run
