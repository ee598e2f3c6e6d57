"""The alignment tax: what a policy unlearnt of the text that it was pre-trained on."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.perplexity import heldout_loss
from gptjax.run.mesh import put
from gptjax.run.task import Setup
from gptjax.run.tasks.corpus import CorpusConfig, corpus, packed_rows
from gptjax.train.lm import lm_sums
from gptjax.types import LmBatch, Model, Params, TrainState


def pretraining(
    config: CorpusConfig, tokenizer: Tokenizer, policy: Model, setup: Setup
) -> tuple[LmBatch, Callable[[TrainState, Params], float]]:
    """(training rows, bits per byte of the held-out text under given policy parameters).

    Args:
        config: the corpus.
        tokenizer: of the policy.
        policy: the language model.
        setup: of the stage.
    """
    train, heldout = corpus(config)
    rows, _ = packed_rows(train, tokenizer, config)
    heldout_rows, _ = packed_rows(heldout, tokenizer, config)
    sums = jax.jit(partial(lm_sums, model=policy))

    def bits_per_byte(state: TrainState, params: Params) -> float:
        of_params: Callable[[Any], Any] = partial(sums, replace(state, params=params, opt_state=()))
        place = partial(put, mesh=setup.mesh)
        token_bytes_V = tokenizer.token_bytes_V
        return heldout_loss(of_params, heldout_rows, setup.batch_size, place, token_bytes_V, share=setup.share)[
            "bits_per_byte"
        ]

    return rows, bits_per_byte
