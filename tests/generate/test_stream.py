"""Streaming draws the very tokens of the batched sampler."""

import itertools

import jax
import numpy as np
import pytest

from gptjax.generate.engine import SamplingConfig, generate
from gptjax.generate.stream import streamer
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.types import PromptBatch

CONFIG = ModelConfig(vocab_size=64, layers=2, width=32, heads=4, kv_heads=2, hidden=64, max_length=64)
NEVER = 63_000  # an end token that is outside the vocabulary


@pytest.fixture(scope="module")
def world():
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    model = language_model(CONFIG)
    with jax.set_mesh(mesh):
        params = jax.jit(model.init)(jax.random.key(0))
    return mesh, model, jax.tree.map(lambda x: x * 6, params)  # far from uniform, so that truncation matters


def start(world, sampling, end_id=NEVER):
    _, model, params = world
    return streamer(model, params, sampling=sampling, end_id=end_id, max_length=CONFIG.max_length)


def batched(world, ids, columns, key, sampling, end_id=NEVER):
    mesh, model, params = world
    tokens = np.array([[0] * (columns - len(ids)) + ids], np.int32)
    batch = put(PromptBatch(tokens_BP=tokens, lengths_B=np.array([len(ids)], np.int32)), mesh)
    run = jax.jit(lambda params, batch, key: generate(model, params, {}, batch, key, sampling=sampling, end_id=end_id))
    tokens_BR, mask_BR = map(np.asarray, run(params, batch, key)[:2])
    return tokens_BR[0][mask_BR[0]].tolist()


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.5, "top_k": 20, "top_p": 0.8}])
def test_stream_gives_the_tokens_of_generate(world, options):
    sampling = SamplingConfig(max_new_tokens=12, **options)
    key, prompt = jax.random.key(7), [5, 9, 17, 3, 41]
    with jax.set_mesh(world[0]):
        streamed = list(start(world, sampling)(prompt, key))
        assert streamed == batched(world, prompt, len(prompt), key, sampling)  # its padding makes no difference
    assert len(streamed) == 12


def test_stream_ends_with_the_end_token(world):
    sampling, key, prompt = SamplingConfig(max_new_tokens=12), jax.random.key(3), [8, 30, 2]
    with jax.set_mesh(world[0]):
        free = list(start(world, sampling)(prompt, key))
        end = free[5]
        streamed = list(start(world, sampling, end)(prompt, key))
    assert streamed == free[: free.index(end) + 1]


def test_decoding_is_compiled_once_and_the_prompt_once_per_power_of_two(world):
    traced = {"prefill": 0, "decode": 0}

    class Counting:
        def __getattr__(self, name):
            function = getattr(world[1], name)

            def counted(*args, **kwargs):
                traced[name] += 1
                return function(*args, **kwargs)

            return counted if name in traced else function

    sampling = SamplingConfig(max_new_tokens=4)
    with jax.set_mesh(world[0]):
        stream = start((world[0], Counting(), world[2]), sampling)
        for length in (1, 15, 16, 17, 32, 33, 60):
            assert len(list(stream([1] * length, jax.random.key(length)))) == 4
    assert traced == {"prefill": 3, "decode": 1}


def test_a_stream_may_be_left_and_another_begun(world):
    with jax.set_mesh(world[0]):
        stream = start(world, SamplingConfig(max_new_tokens=8))
        whole = list(stream([4, 2], jax.random.key(1)))
        assert list(itertools.islice(stream([4, 2], jax.random.key(1)), 3)) == whole[:3]
        first, second = stream([4, 2], jax.random.key(1)), stream([4, 2], jax.random.key(1))
        assert [token for pair in zip(first, second, strict=True) for token in pair][::2] == whole


@pytest.mark.parametrize("length", [0, 61])
def test_a_prompt_that_does_not_fit_is_refused(world, length):
    with jax.set_mesh(world[0]):
        stream = start(world, SamplingConfig(max_new_tokens=4))
        with pytest.raises(ValueError, match=f"the prompt has {length} tokens, the model has room for 1 to 60"):
            next(stream([1] * length, jax.random.key(0)))


def test_an_answer_that_fills_the_model_is_refused(world):
    with jax.set_mesh(world[0]), pytest.raises(ValueError, match=r"64 tokens leaves no room .* 64 positions"):
        start(world, SamplingConfig(max_new_tokens=64))
