"""Answers put together from ragged batches."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, reshard

from gptjax.data.byte_tokenizer import ByteTokenizer
from gptjax.data.loader import EVERYTHING
from gptjax.generate.engine import SamplingConfig
from gptjax.run.mesh import MeshConfig, make_mesh
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


def test_a_batch_is_rounded_up_to_what_fills_the_mesh(monkeypatch):
    # batches of 4 on 3 devices would not divide
    sizes = []

    def generate(model, params, frozen, prompts, key, *, sampling, end_id, index_B):
        sizes.append(len(index_B))
        tokens_BR = jnp.full((len(index_B), 1), end_id)
        return tokens_BR, tokens_BR == end_id, None

    monkeypatch.setattr(sampling, "generate", generate)
    mesh = make_mesh(MeshConfig(fsdp=3, data=1), jax.devices()[:3])
    prompts = PromptBatch(tokens_BP=np.zeros((8, 4), np.int32), lengths_B=np.arange(1, 9, dtype=np.int32))
    setup, tokenizer = SimpleNamespace(mesh=mesh, share=EVERYTHING), ByteTokenizer()
    with jax.set_mesh(mesh):
        found = sampling.sampler(None, setup, tokenizer, SamplingConfig())({}, prompts, jax.random.key(0), 4)
    assert (len(found), set(sizes)) == (8, {6})
