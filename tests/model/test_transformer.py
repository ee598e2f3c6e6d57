"""The Transformer: causality, packing, the cache, published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.generate.engine import SamplingConfig, generate
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.types import LmBatch, PromptBatch

TINY = {"vocab_size": 32, "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "max_length": 32}
GPT = {"positions": "learned", "norm": "layer", "activation": "gelu", "bias": True}
STYLES = {"llama": {}, "gpt": GPT, "relu2": {"activation": "relu2", "tied": False}}


@pytest.fixture(params=STYLES)
def model(request, one_device):
    found = language_model(ModelConfig(**TINY, **STYLES[request.param]))
    return found, jax.jit(found.init)(jax.random.key(0))


def on_mesh(mesh, tokens, segments=None, positions=None):
    tokens = np.asarray(tokens, np.int32)
    ones = np.ones_like(tokens)
    batch = LmBatch(
        tokens_BT=tokens,
        targets_BT=tokens,
        segments_BT=ones if segments is None else np.asarray(segments, np.int32),
        positions_BT=ones.cumsum(1) - 1 if positions is None else np.asarray(positions, np.int32),
        weights_BT=ones,
    )
    placed = put(batch, mesh)
    return placed.tokens_BT, placed.segments_BT, placed.positions_BT


def test_future_tokens_do_not_change_past_logits(model, one_device):
    model, params = model
    tokens = np.arange(10)[None] % 32
    changed = tokens.copy()
    changed[0, 6] = 31
    run = jax.jit(lambda *rows: model.unembed(params, {}, model.hidden(params, {}, *rows)[0]))
    before, after = np.asarray(run(*on_mesh(one_device, tokens))), np.asarray(run(*on_mesh(one_device, changed)))
    np.testing.assert_array_equal(before[0, :6], after[0, :6])
    assert np.abs(before[0, 6:] - after[0, 6:]).max() > 1e-3


def test_without_causality_the_past_sees_the_future(model, one_device):
    model, params = model
    tokens = np.arange(10)[None] % 32
    changed = tokens.copy()
    changed[0, 6] = 31
    run = jax.jit(lambda *rows: model.hidden(params, {}, *rows, causal=False)[0])
    before, after = np.asarray(run(*on_mesh(one_device, tokens))), np.asarray(run(*on_mesh(one_device, changed)))
    assert np.abs(before[0, 0] - after[0, 0]).max() > 1e-5


def test_packed_documents_equal_the_documents_alone(model, one_device):
    model, params = model
    first, second = [5, 6, 7, 8], [9, 10, 11]
    run = jax.jit(lambda *rows: model.hidden(params, {}, *rows)[0])
    rows = on_mesh(one_device, [[*first, *second, 0]], [[1, 1, 1, 1, 2, 2, 2, 0]], [[0, 1, 2, 3, 0, 1, 2, 0]])
    packed = np.asarray(run(*rows))[0]
    assert np.isfinite(packed).all()
    np.testing.assert_allclose(packed[:4], np.asarray(run(*on_mesh(one_device, [first])))[0], atol=1e-5)
    np.testing.assert_allclose(packed[4:7], np.asarray(run(*on_mesh(one_device, [second])))[0], atol=1e-5)


def test_greedy_decoding_with_a_cache_equals_full_forward_passes(model, one_device):
    model, params = model
    prompts = [[3, 4, 5, 6], [7, 8]]
    padded = [[3, 4, 5, 6], [0, 0, 7, 8]]
    batch = PromptBatch(tokens_BP=np.array(padded, np.int32), lengths_B=np.array([4, 2], np.int32))
    run = jax.jit(
        lambda prompts: generate(
            model,
            params,
            {},
            prompts,
            jax.random.key(0),
            sampling=SamplingConfig(max_new_tokens=5, temperature=0.0),
            end_id=99,
        )[:2]
    )
    tokens_BR, mask_BR = map(np.asarray, run(put(batch, one_device)))
    assert mask_BR.all()
    forward = jax.jit(lambda *rows: model.unembed(params, {}, model.hidden(params, {}, *rows)[0]))
    for prompt, given in zip(prompts, tokens_BR, strict=True):
        ids = list(prompt)
        for token in given:
            logits = forward(*on_mesh(one_device, [ids + [0] * (9 - len(ids))]))  # causal: what follows is not seen
            assert int(jnp.argmax(logits[0, len(ids) - 1])) == token
            ids.append(int(token))


def test_generation_stops_at_the_end_token_and_counts_it(model, one_device):
    model, params = model
    batch = put(PromptBatch(tokens_BP=np.full((4, 2), 3, np.int32), lengths_B=np.full(4, 2, np.int32)), one_device)
    sampling = SamplingConfig(max_new_tokens=20)
    run = jax.jit(lambda p, batch: generate(model, p, {}, batch, jax.random.key(1), sampling=sampling, end_id=7))
    tokens_BR, mask_BR, _ = run(params, batch)
    for tokens, mask in zip(np.asarray(tokens_BR), np.asarray(mask_BR), strict=True):
        length = mask.sum()
        assert mask[:length].all()
        assert not tokens[length:].any()
        assert (tokens[: length - 1] != 7).all()
        assert length == 20 or tokens[length - 1] == 7


def test_a_new_parameter_changes_no_other_initial_value(one_device):
    plain, biased = (
        jax.jit(language_model(ModelConfig(**TINY, bias=bias)).init)(jax.random.key(3)) for bias in (False, True)
    )
    np.testing.assert_array_equal(plain["blocks"]["mlp"]["w_in_DF"], biased["blocks"]["mlp"]["w_in_DF"])
    np.testing.assert_array_equal(plain["embedding_VD"], biased["embedding_VD"])


def test_dropout_needs_a_key_and_follows_it(one_device):
    model = language_model(ModelConfig(**TINY, dropout=0.5))
    params, rows = jax.jit(model.init)(jax.random.key(0)), on_mesh(one_device, [[1, 2, 3, 4]])
    still = [np.asarray(jax.jit(model.hidden)(params, {}, *rows)[0]) for _ in range(2)]
    drop = jax.jit(lambda key: model.hidden(params, {}, *rows, key=key)[0])
    first, again, other = (np.asarray(drop(jax.random.key(k))) for k in (1, 1, 2))
    np.testing.assert_array_equal(*still)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert np.abs(first - still[0]).max() > 0.1


def test_recomputation_changes_no_gradient(one_device):
    rows = on_mesh(one_device, [[1, 2, 3, 4]])
    gradients = []
    for remat in ("none", "matmuls", "attention", "full", "offload"):
        model = language_model(ModelConfig(**TINY, remat=remat))
        params = jax.jit(model.init)(jax.random.key(0))
        gradients.append(jax.jit(jax.grad(lambda p, m=model: jnp.sum(m.hidden(p, {}, *rows)[0] ** 3)))(params))
    for other in gradients[1:]:
        for a, b in zip(jax.tree.leaves(gradients[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())  # recomputed, so rounded anew


@pytest.mark.parametrize("remat", ["matmuls", "full"])
def test_recomputation_goes_with_a_spread_residual_stream(remat):
    gradients = []
    for chosen in ("none", remat):
        model = language_model(ModelConfig(**TINY, remat=chosen, spread_norms=True))
        mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=2), jax.devices()[:2])
        with jax.set_mesh(mesh):
            params, rows = jax.jit(model.init)(jax.random.key(0)), on_mesh(mesh, [[1, 2, 3, 4]])
            gradient = jax.jit(jax.grad(lambda p, m=model, r=rows: jnp.sum(m.hidden(p, {}, *r)[0] ** 3)))
            gradients.append(jax.tree.map(np.asarray, gradient(params)))
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(("remat", "there"), [("full", False), ("offload", True)])
def test_offloaded_block_inputs_lie_in_the_hosts_memory(one_device, remat, there):
    model, rows = language_model(ModelConfig(**TINY, remat=remat)), on_mesh(one_device, [[1, 2, 3, 4]])
    params = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    traced = jax.jit(jax.grad(lambda p: jnp.sum(model.hidden(p, {}, *rows)[0]))).trace(params)
    assert ("pinned_host" in traced.lower(lowering_platforms=("tpu",)).as_text()) == there


def test_the_scalar_head_reads_each_position_by_itself(one_device):
    model = scalar_model(ModelConfig(**TINY))
    params = jax.jit(model.init)(jax.random.key(0))
    values = jax.jit(lambda *given: model.values(*given)[0])
    values_BT = values(params, {}, *on_mesh(one_device, [[1, 2, 3]]))
    moved = values(params | {"bias_1": jnp.asarray([2.5])}, {}, *on_mesh(one_device, [[1, 2, 3]]))
    assert values_BT.shape == (1, 3)
    np.testing.assert_allclose(moved - values_BT, 2.5, atol=1e-6)


def test_analytic_flops_are_those_of_an_unrolled_model(one_device):
    length, config = 64, ModelConfig(vocab_size=512, layers=1, width=128, heads=4, activation="relu2")
    model = language_model(config)
    params, rows = jax.jit(model.init)(jax.random.key(0)), on_mesh(one_device, np.ones((1, length)))

    def loss(params):
        return jnp.sum(model.unembed(params, {}, model.hidden(params, {}, *rows)[0]) ** 2)

    counted = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
    full_attention = 6.0 * config.layers * config.width * length  # ours counts the causal half
    assert counted / length == pytest.approx(config.train_flops_per_token(length) + full_attention, rel=0.06)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 18}, "model.width 18 is not a multiple of model.heads 4"),
        ({"kv_heads": 3}, "model.heads 4 is not a multiple of model.kv_heads 3"),
        ({"dropout": 1.0}, "model.dropout must lie in"),
        ({"layers": 0}, "model.layers must be at least 1, got 0"),
        ({"layers": 4, "unroll": 2}, "model.unroll 2 lies between 1 and model.layers 4: set it to one of the two"),
        ({"head_width": 3}, "rotary positions need an even head width, got 3"),
    ],
)
def test_wrong_sizes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(TINY | wrong))
