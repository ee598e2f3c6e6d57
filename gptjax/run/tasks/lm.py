"""Language modelling: a corpus -> a model of the next token."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from gptjax.choices import check_numbers
from gptjax.data.tokenizer import Tokenizer
from gptjax.generate.engine import SamplingConfig
from gptjax.model_types import Model
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks.outlines import rows_outline, trained_model
from gptjax.run.tasks.rows import Rows, RowsConfig, corpus_rows, heldout_figures, shard_rows
from gptjax.run.tasks.sampler import sampler
from gptjax.run.tasks.upstream import started
from gptjax.train.lm import lm_step
from gptjax.train.rows import heldout_sums
from gptjax.types import Params, PromptBatch


@dataclass(frozen=True, kw_only=True)
class LmTask(RowsConfig):
    """Next-token prediction on a corpus.

    start_from: stage of the recipe, or folder of a trained stage, whose weights are taken (None: from scratch).
    samples: texts that the model writes at the end.  z_loss: coefficient.
    examine: whether held-out rows are scored and samples written at the end; a trunk of branches can do without.
    loss_chunks: pieces in which logits are computed.
    """

    start_from: str | None = None
    samples: int = 4
    examine: bool = True
    z_loss: float = 0.0
    loss_chunks: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "task", at_least_1=("loss_chunks",), not_negative=("samples", "z_loss"))


def lm_rows(config: LmTask, setup: Setup, start_from: str | None) -> Rows:
    """The rows that the settings name."""
    if config.shards is not None:
        return shard_rows(config.shards, config.row_tokens, setup, start_from)
    return corpus_rows(config, setup, start_from)


def build(config: LmTask, setup: Setup) -> Task:
    """The task, with its rows at hand."""
    text = lm_rows(config, setup, config.start_from)
    made, (model, tx) = outline(config, setup), trained_model(setup)
    sums = partial(heldout_sums, model=model, loss_chunks=config.loss_chunks)
    figures = heldout_figures(sums, text.heldout, setup, text.tokenizer.token_bytes_V)

    def evaluate(state):
        return {f"eval/{name}": value for name, value in figures(state).items()}

    def finish(state):
        if not config.examine:
            return state, {}
        report: dict[str, Any] = figures(state) | text.figures()
        if config.samples:
            report["samples"] = samples(model, state.params, text.tokenizer, setup, config.samples)
        return state, report

    return Task(
        init=made.init,
        start=started(model, tx, setup, config.start_from),
        data=lambda position: text.draw(position, setup.batch_size, setup.seed, setup.share),
        step=made.step,
        evaluate=evaluate,
        finish=finish,
        tokens="lm/tokens",
        loss="lm/nats_per_token",
        flops_per_token=setup.model.train_flops_per_token(config.row_tokens),
        data_fingerprint=text.fingerprint,
    )


def outline(config: LmTask, setup: Setup) -> Outline:
    """The task without its corpus."""
    model, tx = trained_model(setup)
    step = partial(lm_step, model=model, optimizer=tx, z_loss=config.z_loss, loss_chunks=config.loss_chunks)
    return rows_outline(setup, model, tx, step, config.row_tokens)


def samples(model: Model, params: Params, tokenizer: Tokenizer, setup: Setup, count: int) -> list[str]:
    """A few texts that the model writes from nothing."""
    rows, columns = setup.batch_size, setup.mesh.shape["context"]  # a row of one token could not be spread over it
    begin = np.full((rows, columns), tokenizer.bos_id, np.int32)
    prompts = PromptBatch(tokens_BP=begin, lengths_B=np.ones(rows, np.int32))
    sampling = SamplingConfig(max_new_tokens=min(96, setup.model.max_length - columns), temperature=0.8)
    found = sampler(model, setup, tokenizer, sampling)(params, prompts, jax.random.key(setup.seed), rows)
    return [answer.text for answer in found[:count]]
