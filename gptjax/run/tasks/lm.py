"""Language modelling: a corpus -> a model of the next token."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from gptjax.data.loader import batch_at
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.perplexity import heldout_loss
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import language_model
from gptjax.optim.optimizer import optimizer
from gptjax.run.mesh import put
from gptjax.run.task import Setup, Task
from gptjax.run.tasks.corpus import CorpusConfig, read_corpus, xz_bits_per_byte
from gptjax.run.tasks.upstream import sampler, started
from gptjax.train.lm import lm_step, lm_sums
from gptjax.train.update import initial_state
from gptjax.types import Model, Params, PromptBatch


@dataclass(frozen=True, kw_only=True)
class LmTask(CorpusConfig):
    """Next-token prediction on a corpus.

    start_from: stage of the recipe, or folder of a trained stage, whose weights are taken (None: from scratch).
    samples: texts that the model writes at the end.  z_loss: coefficient.
    loss_chunks: pieces in which logits are computed.
    """

    start_from: str | None = None
    samples: int = 4
    z_loss: float = 0.0
    loss_chunks: int = 1


def build(config: LmTask, setup: Setup) -> Task:
    """The task, with its corpus read and its rows packed."""
    text = read_corpus(config, setup, config.start_from)
    model = language_model(setup.model)
    tx = optimizer(setup.optimizer, setup.steps, model.roles, model.letters, model.ratios)
    place = partial(put, mesh=setup.mesh)
    sums = jax.jit(partial(lm_sums, model=model, loss_chunks=config.loss_chunks))
    step = partial(
        lm_step, model=model, optimizer=tx, z_loss=config.z_loss, loss_chunks=config.loss_chunks,
        dropout=setup.model.dropout > 0,
    )  # fmt: skip

    def evaluate(state):
        token_bytes_V = text.tokenizer.token_bytes_V
        figures = heldout_loss(partial(sums, state), text.heldout_rows, setup.batch_size, place, token_bytes_V)
        return {f"eval/{name}": value for name, value in figures.items()}

    def finish(state):
        raw = "".join(document.text for document in text.heldout).encode()
        report: dict[str, Any] = {name.removeprefix("eval/"): value for name, value in evaluate(state).items()}
        report |= {"heldout_bytes": len(raw), "xz_bits_per_byte": xz_bits_per_byte(raw)} | text.figures
        if config.samples:
            report["samples"] = samples(model, state.params, text.tokenizer, setup, config.samples)
        return state, report

    return Task(
        init=lambda key: initial_state(model.init(key), tx, jax.random.fold_in(key, 1)),
        start=started(model, tx, setup, config.start_from),
        data=lambda position: batch_at(text.rows, position, setup.batch_size, setup.seed),
        step=step,
        evaluate=evaluate,
        finish=finish,
        tokens="lm/tokens",
        loss="lm/nats_per_token",
        flops_per_token=setup.model.train_flops_per_token(config.row_tokens),
        data_fingerprint=text.fingerprint,
    )


def samples(model: Model, params: Params, tokenizer: Tokenizer, setup: Setup, count: int) -> list[str]:
    """A few texts that the model writes from nothing."""
    rows = setup.batch_size
    prompts = PromptBatch(tokens_BP=np.full((rows, 1), tokenizer.bos_id, np.int32), lengths_B=np.ones(rows, np.int32))
    sampling = SamplingConfig(max_new_tokens=min(96, setup.model.max_length - 1), temperature=0.8)
    found = sampler(model, setup, tokenizer, sampling)(params, prompts, jax.random.key(setup.seed), rows)
    return [answer.text for answer in found[:count]]
