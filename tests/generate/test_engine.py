"""Sampling: where a response ends, what each token is drawn from, several responses to a prompt prefilled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import bigram

from gptjax.generate.engine import SamplingConfig, drawn, generate
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.types import PromptBatch

MODEL = language_model(ModelConfig(vocab_size=16, layers=2, width=16, heads=2, max_length=16))
SAMPLING = SamplingConfig(max_new_tokens=5)


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one", "eight"])
def test_responses_to_a_shared_prompt_are_those_to_its_copies(sizes):
    # prompts of 2 and 3 tokens, answered 3 and 5 times; two more are there and answered by nobody
    rng = np.random.default_rng(0)
    prompts = PromptBatch(
        tokens_BP=rng.integers(2, 16, (4, 3)).astype(np.int32), lengths_B=np.array([2, 3, 1, 1], np.int32)
    )
    index_B = np.array([0, 0, 0, 1, 1, 1, 1, 1], np.int32)
    copies = PromptBatch(tokens_BP=prompts.tokens_BP[index_B], lengths_B=prompts.lengths_B[index_B])
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: 8 if len(sizes) > 1 else 1])

    @jax.jit
    def sampled(params, prompts, index_B, key):
        return generate(MODEL, params, {}, prompts, key, sampling=SAMPLING, end_id=1, index_B=index_B)

    with jax.set_mesh(mesh):
        params = jax.jit(lambda key: jax.tree.map(lambda x: 3 * x, MODEL.init(key)))(jax.random.key(0))
        key = jax.random.key(1)
        shared = sampled(params, put(prompts, mesh), index_B, key)
        apart = sampled(params, put(copies, mesh), None, key)
    for one, other in zip(shared[:2], apart[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(np.unique(np.asarray(shared[0])[3:], axis=0)) > 1  # not one answer five times


def chain():
    """A table that leads from 0 to 2 to 3 to the end token and from the end token to 2."""
    return {"table": 50.0 * jnp.asarray([[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]], jnp.float32)}


@pytest.mark.parametrize(
    ("longest", "tokens", "mask"),
    [
        (5, [[2, 3, 1, 0, 0], [1, 0, 0, 0, 0]], [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]),
        (2, [[2, 3], [1, 0]], [[1, 1], [1, 0]]),
    ],
)
def test_a_response_ends_with_its_end_token_or_at_the_longest(longest, tokens, mask, one_device):
    # prompts that end in 0 and in 3: 0 -> 2 -> 3 -> end, 3 -> end
    prompts = put(
        PromptBatch(tokens_BP=np.array([[2, 0], [0, 3]], np.int32), lengths_B=np.array([2, 1], np.int32)), one_device
    )
    sampling = SamplingConfig(max_new_tokens=longest)
    found = generate(bigram(), chain(), {}, prompts, jax.random.key(0), sampling=sampling, end_id=1)
    assert [np.asarray(x).tolist() for x in found[:2]] == [tokens, np.array(mask, bool).tolist()]


def test_each_token_has_its_own_randomness(one_device):
    # a uniform table over 4 tokens without the end: 2 rows of 24 draws are neither constant nor alike
    prompts = put(PromptBatch(tokens_BP=np.zeros((2, 1), np.int32), lengths_B=np.ones(2, np.int32)), one_device)
    flat, sampling = {"table": jnp.zeros((4, 4))}, SamplingConfig(max_new_tokens=24)
    tokens, mask, _ = generate(bigram(), flat, {}, prompts, jax.random.key(0), sampling=sampling, end_id=9)
    assert np.asarray(mask).all()
    assert all(len(set(row.tolist())) == 4 for row in np.asarray(tokens))
    assert (np.asarray(tokens)[0] != np.asarray(tokens)[1]).any()
    again = drawn(bigram(), flat, {}, jnp.zeros((2, 1, 4)), jax.random.fold_in(jax.random.key(0), 0), sampling)
    np.testing.assert_array_equal(again, np.asarray(tokens)[:, 0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "sampling.max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "sampling.temperature must not be negative, got -1.0"),
        ({"top_k": -1}, "sampling.top_k must not be negative, got -1"),
        ({"top_p": 0.0}, r"sampling.top_p must lie in \(0, 1\], got 0.0"),
    ],
)
def test_wrong_sampling_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**wrong)


@pytest.mark.parametrize("truncated", [{"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.9}])
def test_responses_to_train_on_come_from_the_whole_distribution(truncated, one_device):
    prompts = put(PromptBatch(tokens_BP=np.zeros((1, 1), np.int32), lengths_B=np.ones(1, np.int32)), one_device)
    sampling = SamplingConfig(max_new_tokens=2, **truncated)
    with pytest.raises(ValueError, match="training needs responses from the whole distribution"):
        generate(bigram(), chain(), {}, prompts, jax.random.key(0), sampling=sampling, end_id=1, keep_logp=True)
