"""Answers put together from ragged batches."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, reshard

from gptjax.data.byte_tokenizer import ByteTokenizer
from gptjax.data.loader import EVERYTHING
from gptjax.generate.engine import SamplingConfig
from gptjax.run.tasks import sampler as sampling
from gptjax.types import PromptBatch


def test_answers_come_in_order_without_those_of_filler_rows(one_device, monkeypatch):
    # 3 prompts in batches of 2: the answer to prompt p is its length, a random letter, then the end token if the
    # length is odd
    def generate(model, params, frozen, prompts, key, *, sampling, end_id, index_B):
        lengths_B = reshard(prompts.lengths_B, PartitionSpec())[index_B]
        letter = jnp.full(2, jax.random.randint(key, (), ord("a"), ord("z") + 1))
        tokens_BR = jnp.stack([ord("0") + lengths_B, letter, jnp.full(2, end_id)], axis=1)
        return tokens_BR, jnp.stack([lengths_B > 0, lengths_B > 0, lengths_B % 2 == 1], axis=1), None

    monkeypatch.setattr(sampling, "generate", generate)
    prompts = PromptBatch(tokens_BP=np.zeros((3, 4), np.int32), lengths_B=np.array([3, 2, 1], np.int32))
    setup, tokenizer = SimpleNamespace(mesh=one_device, share=EVERYTHING), ByteTokenizer()
    sample = sampling.sampler(None, setup, tokenizer, SamplingConfig())
    found = sample({}, prompts, jax.random.key(0), 2)
    assert [(answer.text[0], answer.ended) for answer in found] == [("3", True), ("2", False), ("1", True)]
    assert found[0].tokens == (*found[0].text.encode(), tokenizer.end_id)
    letters = [answer.text[1] for answer in found]
    assert letters[0] == letters[1]
    assert letters[1] != letters[2]  # each batch has its own randomness
