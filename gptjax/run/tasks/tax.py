"""The alignment tax: what a policy unlearnt of the text that it was pre-trained on."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from gptjax.data.loader import Share, batch_at
from gptjax.data.remote import open_shards
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.perplexity import heldout_loss
from gptjax.run.mesh import put
from gptjax.run.task import Setup
from gptjax.run.tasks.corpus import corpus, packed_rows
from gptjax.run.tasks.rows import RowsConfig
from gptjax.train.lm import lm_sums
from gptjax.types import LmBatch, Model, Params, TrainState


def pretraining(
    config: RowsConfig, tokenizer: Tokenizer, policy: Model, setup: Setup
) -> tuple[Callable[[int, int, int, Share], LmBatch], Callable[[TrainState, Params], float]]:
    """((position, batch_size, seed, share) -> training rows, bits per byte of held-out text under given parameters).

    Args:
        config: the corpus or its shards.
        tokenizer: of the policy.
        policy: the language model.
        setup: of the stage.

    Raises:
        ValueError: shards were made with another tokenizer, or for rows of another length.
    """
    draw, heldout_rows = _rows(config, tokenizer)
    sums = jax.jit(partial(lm_sums, model=policy))

    def bits_per_byte(state: TrainState, params: Params) -> float:
        of_params: Callable[[Any], Any] = partial(sums, replace(state, params=params, opt_state=()))
        place = partial(put, mesh=setup.mesh)
        token_bytes_V = tokenizer.token_bytes_V
        found = heldout_loss(of_params, heldout_rows, setup.batch_size, place, token_bytes_V, share=setup.share)
        return found["bits_per_byte"]

    return draw, bits_per_byte


def _rows(config: RowsConfig, tokenizer: Tokenizer) -> tuple[Callable[[int, int, int, Share], LmBatch], LmBatch]:
    if config.shards is None:
        train, heldout = (packed_rows(documents, tokenizer, config)[0] for documents in corpus(config))
        return partial(batch_at, train), heldout
    train, heldout = (open_shards(config.shards, split) for split in ("train", "heldout"))
    if train.manifest["tokenizer"] != tokenizer.fingerprint:
        raise ValueError(f"task.pretrain.shards {config.shards!r} were made with another tokenizer than the policy's")
    if train.row_tokens != config.row_tokens:
        raise ValueError(
            f"task.pretrain.row_tokens is {config.row_tokens}, the rows in {config.shards} have {train.row_tokens}"
        )
    return train.batch_at, heldout.rows(np.arange(heldout.n_rows))
