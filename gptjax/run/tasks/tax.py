"""The alignment tax: what a policy unlearnt of the text that it was pre-trained on."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from gptjax.data.loader import Share, batch_at, fingerprint
from gptjax.data.remote import open_shards
from gptjax.data.tokenizer import Tokenizer
from gptjax.model_types import Model
from gptjax.run.task import Setup
from gptjax.run.tasks.corpus import corpus, packed_rows
from gptjax.run.tasks.rows import RowsConfig, heldout_figures
from gptjax.train.rows import heldout_sums
from gptjax.types import LmBatch, Params, TrainState


class Pretraining(NamedTuple):
    """Text from before the policy was tuned.

    draw(position, batch_size, seed, share) -> training rows.
    bits_per_byte(state, params) -> of the held-out text under these parameters.
    fingerprint: of the training rows.
    """

    draw: Callable[[int, int, int, Share], LmBatch]
    bits_per_byte: Callable[[TrainState, Params], float]
    fingerprint: str


def pretraining(config: RowsConfig, tokenizer: Tokenizer, policy: Model, setup: Setup) -> Pretraining:
    """The text that the settings name.

    Args:
        config: the corpus or its shards.
        tokenizer: of the policy.
        policy: the language model.
        setup: of the stage.

    Raises:
        ValueError: shards were made with another tokenizer, or for rows of another length.
    """
    draw, heldout_rows, found_in = _rows(config, tokenizer)
    figures = heldout_figures(partial(heldout_sums, model=policy), heldout_rows, setup, tokenizer.token_bytes_V)

    def bits_per_byte(state: TrainState, params: Params) -> float:
        return figures(replace(state, params=params, opt_state=()))["bits_per_byte"]

    return Pretraining(draw, bits_per_byte, found_in)


def _rows(config: RowsConfig, tokenizer: Tokenizer) -> tuple[Callable[[int, int, int, Share], LmBatch], LmBatch, str]:
    """(how to draw training rows, held-out rows, fingerprint)."""
    if config.shards is None:
        train, heldout = (packed_rows(documents, tokenizer, config)[0] for documents in corpus(config))
        return partial(batch_at, train), heldout, fingerprint(train)
    train, heldout = (open_shards(config.shards, split) for split in ("train", "heldout"))
    if train.manifest["tokenizer"] != tokenizer.fingerprint:
        raise ValueError(f"task.pretrain.shards {config.shards!r} were made with another tokenizer than the policy's")
    if train.row_tokens != config.row_tokens:
        raise ValueError(
            f"task.pretrain.row_tokens is {config.row_tokens}, the rows in {config.shards} have {train.row_tokens}"
        )
    return train.batch_at, heldout.rows(np.arange(heldout.n_rows)), train.manifest["fingerprint"]
