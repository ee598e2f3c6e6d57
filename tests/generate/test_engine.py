"""Several responses to a prompt that is prefilled once."""

import jax
import numpy as np
import pytest

from gptjax.generate.engine import SamplingConfig, generate
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
    for one, other in zip(shared, apart, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(np.unique(np.asarray(shared[0])[3:], axis=0)) > 1  # not one answer five times
