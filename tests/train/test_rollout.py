"""Rollouts of a tiny Transformer: the log-probabilities that PPO trains on are those of the tokens that were drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax import dims
from gptjax.generate.engine import SamplingConfig, drawn, generate, prefilled
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.model_types import ScalarModel
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.train.response import before_response, response_logp
from gptjax.train.rollout import full_rows, last_score
from gptjax.types import PromptBatch

TEMPERATURE, END, RESPONSES = 0.7, 1, 5
SIZES = ModelConfig(vocab_size=12, layers=1, width=8, heads=2, max_length=32, positions="learned")
SAMPLING = SamplingConfig(max_new_tokens=RESPONSES, temperature=TEMPERATURE)
PROMPTS = [[7, 8], [3, 4, 5, 6], [9]]


def padded(mesh, columns, pad=0):
    """The prompts in so many columns, filled on the left."""
    tokens_BP = np.array([[pad] * (columns - len(ids)) + ids for ids in PROMPTS], np.int32)
    return put(PromptBatch(tokens_BP=tokens_BP, lengths_B=np.array([len(ids) for ids in PROMPTS], np.int32)), mesh)


@pytest.fixture(scope="module")
def sampled():
    """(model, params, log-probabilities of given responses after prompts of so many columns, tokens, mask)."""
    model = language_model(SIZES)

    @jax.jit
    def draw(params, prompts):
        return generate(model, params, {}, prompts, jax.random.key(3), sampling=SAMPLING, end_id=END)[:2]

    @jax.jit
    def logp(params, prompts, tokens_BR, mask_BR):
        names = ("tokens_BT", "segments_BT", "positions_BT")
        rows = dict(zip(names, full_rows(prompts, tokens_BR, mask_BR), strict=True))
        return response_logp(model, params=params, frozen={}, rows=rows, responses=RESPONSES, temperature=TEMPERATURE)[
            0
        ]

    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = jax.jit(lambda key: jax.tree.map(lambda x: 3 * x, model.init(key)))(jax.random.key(0))  # not uniform
        return model, params, logp, *draw(params, padded(mesh, 4))


def test_the_cache_that_sampled_and_the_training_forward_agree(sampled, one_device):
    # feed the drawn tokens through prefill and decode again, one by one, and read their log-probabilities off; each
    # draw repeats with its key
    model, params, logp, tokens_BR, mask_BR = sampled
    prompts = padded(one_device, 4)

    @jax.jit
    def by_cache(tokens_BR, mask_BR):
        held = model.gather(params)
        cache, h_BTD, segments_BS = prefilled(model, held, {}, prompts, slots=4 + RESPONSES)
        found, draws = [], []
        for r in range(RESPONSES):
            logits_BV = model.unembed(held, {}, h_BTD, decoding=True)[:, 0] / TEMPERATURE
            hit_BV = tokens_BR[:, r : r + 1] == jnp.arange(12)[None]
            found.append(jnp.sum(jnp.where(hit_BV, jax.nn.log_softmax(logits_BV), 0.0), axis=-1))
            draws.append(drawn(model, held, {}, h_BTD, jax.random.fold_in(jax.random.key(3), r), SAMPLING))
            segments_BS = segments_BS.at[:, 4 + r].set(mask_BR[:, r].astype(jnp.int32))
            position_BT = (prompts.lengths_B + r)[:, None]
            given_BT = tokens_BR[:, r : r + 1]
            cache, h_BTD = model.decode(held, {}, cache, given_BT, segments_BS, position_BT, jnp.int32(4 + r))
        return jnp.stack(found, axis=1), jnp.stack(draws, axis=1)

    mask = np.asarray(mask_BR)
    expected, draws = map(np.asarray, by_cache(tokens_BR, mask_BR))
    np.testing.assert_array_equal(draws[mask], np.asarray(tokens_BR)[mask])
    found = np.asarray(logp(params, prompts, tokens_BR, mask_BR))
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5)
    assert found[mask].std() > 0.1
    assert mask.sum() > 5


def test_padding_on_the_left_changes_no_log_probability(sampled, one_device):
    _, params, logp, tokens_BR, mask_BR = sampled
    mask = np.asarray(mask_BR)
    narrow = np.asarray(logp(params, padded(one_device, 4), tokens_BR, mask_BR))
    wide = np.asarray(logp(params, padded(one_device, 8, pad=11), tokens_BR, mask_BR))
    np.testing.assert_allclose(wide[mask], narrow[mask], atol=1e-5)


def responses(mesh, tokens_BR):
    """(tokens_BR, mask_BR) on the mesh: responses of 2, 1 and 3 tokens."""
    mask_BR = np.arange(3)[None] < np.array([2, 1, 3])[:, None]
    place = NamedSharding(mesh, dims.act_spec("BR"))
    return jax.device_put(np.array(tokens_BR, np.int32), place), jax.device_put(mask_BR, place)


def test_rows_join_prompt_and_response_without_a_gap(one_device):
    # prompts of 2, 4 and 1 in 4 columns; responses of 2, 1 and 3: positions run on, what follows the end is padding
    tokens_BR, mask_BR = responses(one_device, [[5, 1, 0], [1, 0, 0], [5, 5, 5]])
    tokens_BT, segments_BT, positions_BT = full_rows(padded(one_device, 4), tokens_BR, mask_BR)
    assert np.asarray(tokens_BT).tolist() == [[0, 0, 7, 8, 5, 1, 0], [3, 4, 5, 6, 1, 0, 0], [0, 0, 0, 9, 5, 5, 5]]
    segments = [[0, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert np.asarray(segments_BT).tolist() == segments
    assert [row[keep].tolist() for row, keep in zip(np.asarray(positions_BT), np.array(segments) > 0, strict=True)] == [
        [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3],
    ]  # fmt: skip


def test_a_response_is_scored_at_its_last_real_token(one_device):
    # the "model" gives every position its own column number; ends stand in columns 5, 4 and 6
    columns = ScalarModel(
        init=lambda key: {},
        values=lambda params, frozen, tokens_BT, *rest: (jnp.zeros(tokens_BT.shape) + jnp.arange(7.0)[None], None),
        roles={},
        letters={},
    )
    names = ("tokens_BT", "segments_BT", "positions_BT")
    joined = full_rows(padded(one_device, 4), *responses(one_device, np.zeros((3, 3))))
    rows = dict(zip(names, joined, strict=True))
    np.testing.assert_array_equal(last_score(columns, {}, {}, rows), [5, 4, 6])


def test_what_stands_before_each_response_token_is_one_column_earlier(one_device):
    # 4 prompt columns and 3 responses: entries 3, 4, 5 of 0..6
    np.testing.assert_array_equal(before_response(jnp.arange(7.0)[None], "BT", 3), [[3, 4, 5]])


def chain():
    """A table that leads from 0 to 2 to 3 to the end token and from the end token to 2."""
    return {"table": 50.0 * jnp.asarray([[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]], jnp.float32)}
