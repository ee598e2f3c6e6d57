"""Masked language modelling: a corpus -> a model of each token from both sides."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard

from gptjax import dims
from gptjax.choices import check_numbers
from gptjax.data.loader import batch_at, evaluation_batches, own_rows
from gptjax.data.masking import masked
from gptjax.data.tokenizer import Tokenizer
from gptjax.model_types import Model
from gptjax.run.mesh import fetch, put
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks.corpus import CorpusConfig, read_corpus
from gptjax.run.tasks.outlines import rows_outline, trained_model
from gptjax.run.tasks.rows import heldout_figures
from gptjax.run.tasks.upstream import started
from gptjax.train.mlm import mlm_step
from gptjax.train.rows import heldout_sums
from gptjax.types import LmBatch, TrainState


@dataclass(frozen=True, kw_only=True)
class MlmTask(CorpusConfig):
    """Hidden tokens of a corpus, guessed from both sides.

    start_from: stage of the recipe, or folder of a trained stage, whose weights are taken (None: from scratch).
    mask_fraction: of the tokens, selected anew whenever a row comes by; 80 % of them are hidden, 10 % replaced by
    random tokens, 10 % left as they are.  loss_chunks: pieces in which logits are computed.
    """

    start_from: str | None = None
    mask_fraction: float = 0.15
    loss_chunks: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "task", at_least_1=("loss_chunks",))
        if not 0.0 < self.mask_fraction <= 1.0:
            raise ValueError(f"task.mask_fraction must lie in (0, 1], got {self.mask_fraction}")


def build(config: MlmTask, setup: Setup) -> Task:
    """The task, with its corpus read and its rows packed."""
    text = read_corpus(config, setup, config.start_from)
    hide = partial(
        masked,
        special_V=text.tokenizer.token_bytes_V == 0,
        mask_id=text.tokenizer.mask_id,
        fraction=config.mask_fraction,
    )
    made, (model, tx) = outline(config, setup), trained_model(setup)
    heldout = hide(text.heldout_rows, 0, 0)  # masks that no setting changes: figures of different runs compare
    sums = partial(heldout_sums, model=model, causal=False, loss_chunks=config.loss_chunks)
    figures = heldout_figures(sums, heldout, setup)

    def data(position):
        batch = batch_at(text.rows, position, setup.batch_size, setup.seed)
        return own_rows(hide(batch, position * setup.batch_size, setup.seed), setup.share)

    def evaluate(state):
        return {f"eval/{name}": value for name, value in figures(state).items()}

    def finish(state):
        report: dict[str, Any] = figures(state)
        batch = next(iter(evaluation_batches(heldout, setup.batch_size)))
        guessed_BT = fetch(jax.jit(partial(guesses, model=model))(state, put(own_rows(batch, setup.share), setup.mesh)))
        return state, report | text.figures | {"samples": filled_in(batch, guessed_BT, text.tokenizer)}

    return Task(
        init=made.init,
        start=started(model, tx, setup, config.start_from),
        data=data,
        step=made.step,
        evaluate=evaluate,
        finish=finish,
        tokens="mlm/row_tokens",
        loss="mlm/nats_per_token",
        flops_per_token=setup.model.train_flops_per_token(config.row_tokens, causal=False),
        data_fingerprint=text.fingerprint,
    )


def outline(config: MlmTask, setup: Setup) -> Outline:
    """The task without its corpus."""
    model, tx = trained_model(setup)
    step = partial(mlm_step, model=model, optimizer=tx, loss_chunks=config.loss_chunks)
    return rows_outline(setup, model, tx, step, config.row_tokens, causal=False)


def guesses(state: TrainState, batch: LmBatch, *, model: Model) -> jax.Array:
    """i32[B, T], the likeliest token at each place."""
    rows = batch.tokens_BT, batch.segments_BT, batch.positions_BT
    logits_BTV = model.unembed(
        state.params, state.frozen, model.hidden(state.params, state.frozen, *rows, causal=False)[0]
    )
    whole_BTV = reshard(logits_BTV, jax.P(*dims.act_spec("BT"), None))  # the likeliest over a spread V is not offered
    return jnp.argmax(whole_BTV, axis=-1).astype(jnp.int32)


def filled_in(batch: LmBatch, guessed_BT: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The beginnings of four rows: a selected token stands as [guess], or as [guess, not token] if that is wrong."""

    def spell(token: int) -> bytes:
        return tokenizer.decode_bytes([int(token)])

    def piece(token: int, guess: int, selected: bool) -> bytes:
        if not selected:
            return spell(token)
        return b"[" + spell(guess) + (b"]" if guess == token else b", not " + spell(token) + b"]")

    texts = []
    for row in range(min(4, len(batch.tokens_BT))):
        inside_T = np.flatnonzero(batch.segments_BT[row] == 1)[:96]
        columns = (batch.targets_BT[row], guessed_BT[row], batch.weights_BT[row] > 0)
        parts = [piece(*column) for column in zip(*(values_T[inside_T] for values_T in columns), strict=True)]
        texts.append(b"".join(parts).decode(errors="replace"))
    return texts
