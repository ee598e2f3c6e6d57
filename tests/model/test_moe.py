"""A Transformer with experts: published sizes, the cache, and what its routers report."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import dims
from gptjax.generate.engine import prefilled
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.scaling.accounting import counts
from gptjax.types import LmBatch, PromptBatch

TINY = ModelConfig(vocab_size=32, layers=2, width=16, heads=4, kv_heads=2, hidden=24, max_length=32, experts=4)
MIXTRAL = ModelConfig(
    vocab_size=32_000, layers=32, width=4096, heads=32, kv_heads=8, hidden=14_336, max_length=32_768,
    rope_theta=1e6, tied=False, experts=8, experts_per_token=2,
)  # fmt: skip


def test_a_token_meets_12_9_of_mixtrals_46_7_billion_parameters():
    parts = counts(MIXTRAL)
    assert parts.total == 46_702_792_704
    assert parts.matmul + parts.embedding + parts.norm == 12_879_925_248
    # 6 x (what a token is multiplied with: active parameters without the embedding and 65 norms) + attention
    multiplied = 12_879_925_248 - 32_000 * 4096 - 65 * 4096
    assert MIXTRAL.train_flops_per_token(4096) == 6 * multiplied + 6 * 32 * 4096 * 4096


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"experts": None, "bias": True, "norm": "layer", "positions": "learned", "activation": "gelu"},
        {"bias": True, "tied": False, "experts_per_token": 3},
    ],
)
def test_counted_parameters_are_those_that_are_made(changes, one_device):
    config = replace(TINY, **changes)
    arrays = jax.eval_shape(language_model(config).init, jax.random.key(0))
    assert counts(config).total == sum(leaf.size for leaf in jax.tree.leaves(arrays))


def rows_of(mesh, tokens, segments):
    tokens, segments = np.asarray(tokens, np.int32), np.asarray(segments, np.int32)
    places = np.maximum(np.cumsum(segments > 0, axis=1) - 1, 0).astype(np.int32)
    batch = LmBatch(tokens_BT=tokens, targets_BT=tokens, segments_BT=segments, positions_BT=places, weights_BT=tokens)
    placed = put(batch, mesh)
    return placed.tokens_BT, placed.segments_BT, placed.positions_BT


def test_a_cache_gives_the_hidden_states_of_whole_rows_on_a_mesh_of_experts():
    mesh = make_mesh(MeshConfig(data=1, expert=2, tensor=2), jax.devices()[:4])
    model = language_model(TINY)
    tokens = np.array([[0, 5, 6, 7, 8], [9, 10, 11, 12, 13]])
    with jax.set_mesh(mesh):
        params = jax.jit(model.init)(jax.random.key(0))
        rows = rows_of(mesh, tokens, tokens > 0)
        whole, _ = jax.jit(lambda *rows: model.hidden(params, {}, *rows))(*rows)
        prompts = put(PromptBatch(tokens_BP=np.int32(tokens[:, :4]), lengths_B=np.array([3, 4], np.int32)), mesh)

        @jax.jit
        def stepped(prompts, last_B1):
            held = model.gather(params)
            cache, first_BTD, segments_BS = prefilled(model, held, {}, prompts, slots=5)
            one_B1 = jnp.ones_like(prompts.lengths_B)[:, None]
            segments_BS = jax.lax.dynamic_update_slice_in_dim(segments_BS, one_B1, 4, axis=1)
            _, next_BTD = model.decode(held, {}, cache, last_B1, segments_BS, prompts.lengths_B[:, None], jnp.int32(4))
            return first_BTD, next_BTD

        last_B1 = jax.sharding.reshard(jnp.asarray(tokens[:, 4:], jnp.int32), dims.act_spec("BT", decoding=True))
        first, following, whole = map(np.asarray, (*stepped(prompts, last_B1), whole))
    np.testing.assert_allclose(first[:, 0], whole[:, 3], atol=1e-5)
    np.testing.assert_allclose(following[:, 0], whole[:, 4], atol=1e-5)


def test_what_routers_report_adds_up_over_rows(one_device):
    model = language_model(replace(TINY, balance_coefficient=0.5, router_z_coefficient=0.25))
    params = jax.jit(model.init)(jax.random.key(0))
    run = jax.jit(lambda *rows: model.hidden(params, {}, *rows)[1])
    tokens, segments = np.arange(12).reshape(2, 6), np.array([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 0, 0]])
    both = run(*rows_of(one_device, tokens, segments))
    each = [run(*rows_of(one_device, tokens[i : i + 1], segments[i : i + 1])) for i in range(2)]
    for name in ("loss", "balance", "z"):
        np.testing.assert_allclose(getattr(both, name), sum(getattr(x, name) for x in each), rtol=1e-5)
    np.testing.assert_allclose(both.loss, 0.5 * both.balance + 0.25 * both.z, rtol=1e-6)
    assert int(both.choices) == 2 * 2 * 10  # layers, experts per token, real tokens
    assert int(both.dropped) == 0


def test_routers_report_what_found_no_room(one_device):
    model = language_model(replace(TINY, layers=1, experts_per_token=1, capacity_factor=0.25))
    params = jax.jit(model.init)(jax.random.key(0))
    rows = rows_of(one_device, np.arange(16)[None], np.ones((1, 16)))
    router = jax.jit(lambda *rows: model.hidden(params, {}, *rows)[1])(*rows)
    assert int(router.choices) == 16
    assert 16 - 4 * 1 <= int(router.dropped) < 16  # each of four experts has room for ceil(.25 x 16 / 4) = 1 token


def test_muon_takes_each_expert_as_a_matrix_of_its_own(one_device):
    model = language_model(TINY)
    params = jax.jit(model.init)(jax.random.key(0))
    tx = optimizer(
        OptimizerConfig(name="muon", peak_lr=1.0, schedule="constant", clip_norm=None), 1, model.roles, model.letters
    )
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    found = np.asarray(updates["blocks"]["mlp"]["w_in_EDF"])[1, 2]
    singular = np.linalg.svd(found / (0.2 * np.sqrt(24)), compute_uv=False)
    assert ((singular > 0.6) & (singular < 1.3)).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"experts_per_token": 5}, "model.experts_per_token must lie between 1 and model.experts 4, got 5"),
        ({"capacity_factor": 0.0}, "model.capacity_factor must be positive, got 0.0"),
        ({"balance_coefficient": -1.0}, "model.balance_coefficient must not be negative, got -1.0"),
    ],
)
def test_wrong_settings_of_experts_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)
