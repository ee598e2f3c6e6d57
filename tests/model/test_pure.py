"""The record that steps see: parameters with letters and roles, their layouts, gradients of packed rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from gptjax import dims
from gptjax.losses.cross_entropy import chunked_nll
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model, value_head

CONFIG = ModelConfig(vocab_size=20, layers=2, width=8, heads=4, kv_heads=2, hidden=12, max_length=16, bias=True)
GPT = {"positions": "learned", "norm": "layer", "activation": "gelu"}


@pytest.mark.parametrize("make", [language_model, scalar_model, value_head])
def test_letters_spell_the_shape_and_the_layout_of_every_parameter(make):
    # on the mesh of a pod that is not there
    model = make(CONFIG)
    mesh = AbstractMesh((2, 4, 1, 2, 2), dims.MESH_AXES, axis_types=(AxisType.Explicit,) * 5)
    key = jax.random.key(0)
    with jax.sharding.use_abstract_mesh(mesh):
        params = jax.eval_shape(model.init, key)

    def check(path, struct, letters, role):
        name = path[-1].key
        assert struct.shape == dims.shape(letters, CONFIG.sizes), name
        assert struct.sharding.spec == dims.param_spec(letters), name
        assert letters.removeprefix("L") == name.rpartition("_")[2], name
        assert role in ("matrix", "bias", "norm", "embedding"), name
        return 0

    jax.tree_util.tree_map_with_path(check, params, model.letters, model.roles)


def test_roles_tell_matrices_from_what_does_not_decay(one_device):
    model = language_model(dataclasses.replace(CONFIG, **GPT))
    by_role = {}
    for path, role in jax.tree_util.tree_leaves_with_path(model.roles):
        by_role.setdefault(role, set()).add(path[-1].key)
    assert by_role["matrix"] == {"wq_DNH", "wk_DKH", "wv_DKH", "wo_NHD", "w_in_DF", "w_out_FD"}
    assert by_role["embedding"] == {"embedding_VD", "position_TD"}
    assert by_role["norm"] == {"scale_D", "bias_D"}
    assert by_role["bias"] == {"bq_NH", "bk_KH", "bv_KH", "bo_D", "b_in_F", "b_out_D"}


def test_initial_values_have_the_declared_spread(one_device):
    # in: D ** -.5; out: F ** -.5 / (2 L) ** .5; embedding .02; norms 1; biases 0; head 1 / (D + 1)
    config = ModelConfig(vocab_size=500, layers=2, width=64, heads=4, bias=True)
    params = jax.jit(scalar_model(config).init)(jax.random.key(0))
    blocks = params["trunk"]["blocks"]
    assert np.std(blocks["mlp"]["w_in_DF"]) == pytest.approx(1 / 8, rel=0.05)
    assert np.std(blocks["mlp"]["w_out_FD"]) == pytest.approx(1 / 16 / 2, rel=0.05)
    assert np.std(blocks["attention"]["wo_NHD"]) == pytest.approx(1 / 8 / 2, rel=0.05)
    assert np.std(params["trunk"]["embedding_VD"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["head_D"]) == pytest.approx(65**-0.5, rel=0.3)
    assert (np.asarray(blocks["mlp_norm"]["scale_D"]) == 1).all()
    assert not np.asarray(blocks["mlp"]["b_in_F"]).any()
    assert not np.asarray(params["bias_1"]).any()
    layers = np.asarray(blocks["mlp"]["w_in_DF"])
    assert np.abs(layers[0] - layers[1]).max() > 0.1  # layers differ


def on(mesh, *rows):
    spec = NamedSharding(mesh, dims.act_spec("BT"))
    return [jax.device_put(np.array(x, np.int32), spec) for x in rows]


def test_packing_changes_no_gradient(one_device):
    # documents 5 6 7 8 and 9 10 11: packed into one row beside an empty one, or one row each
    model = language_model(dataclasses.replace(CONFIG, bias=False))
    params = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    @jax.grad
    def gradient(params, tokens, targets, segments, positions):
        h_BTD, _ = model.hidden(params, {}, tokens, segments, positions)
        weights = (targets > 0).astype(jnp.float32)
        return chunked_nll(lambda h: model.unembed(params, {}, h), h_BTD, targets, weights).nll_sum

    packed = {
        "tokens": [[5, 6, 7, 8, 9, 10, 11, 0], [0] * 8],
        "targets": [[6, 7, 8, 0, 10, 11, 0, 0], [0] * 8],
        "segments": [[1, 1, 1, 1, 2, 2, 2, 0], [0] * 8],
        "positions": [[0, 1, 2, 3, 0, 1, 2, 0], [0] * 8],
    }
    alone = {
        "tokens": [[5, 6, 7, 8, 0, 0, 0, 0], [9, 10, 11, 0, 0, 0, 0, 0]],
        "targets": [[6, 7, 8, 0, 0, 0, 0, 0], [10, 11, 0, 0, 0, 0, 0, 0]],
        "segments": [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]],
        "positions": [[0, 1, 2, 3, 0, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0, 0]],
    }
    found, expected = (gradient(params, *on(one_device, *rows.values())) for rows in (packed, alone))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(a).max() > 1e-6
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_the_past_has_no_gradient_of_the_future(one_device):
    # the third state depends on learned positions 0, 1 and 2 and on exactly nothing of 3, 4 and 5
    model = language_model(dataclasses.replace(CONFIG, **GPT))
    rows = on(one_device, [[5, 6, 7, 8, 9, 10]], [[1] * 6], [list(range(6))])

    @jax.jit
    @jax.grad
    def gradient(params):
        third_1T1 = jnp.arange(6)[None, :, None] == 2
        return jnp.sum(jnp.where(third_1T1, model.hidden(params, {}, *rows)[0] ** 3, 0.0))

    slopes_T = np.abs(gradient(jax.jit(model.init)(jax.random.key(1)))["position_TD"]).max(axis=1)
    assert (slopes_T[:3] > 1e-4).all()
    np.testing.assert_array_equal(slopes_T[3:], 0.0)


def test_gathered_parameters_have_the_dtype_that_they_compute_in(one_device):
    model = language_model(dataclasses.replace(CONFIG, dtype="bfloat16", experts=2))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    gathered = jax.eval_shape(model.gather, params)
    kept = {jax.tree_util.keystr(path) for path, x in jax.tree.leaves_with_path(gathered) if x.dtype == jnp.float32}
    assert {path for path in kept if "norm" not in path} == {"['blocks']['mlp']['router_DE']"}
    assert len(kept) == 4  # of attention, of the experts and the last


@pytest.mark.parametrize("experts", [None, 2])
def test_the_sampler_is_the_policy_that_trains_in_bfloat16_too(experts, one_device):
    model = language_model(dataclasses.replace(CONFIG, dtype="bfloat16", experts=experts))
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x * (1 + 0.1 * noise.normal(size=x.shape)).astype(x.dtype), jax.jit(model.init)(jax.random.key(0))
    )
    rows = on(one_device, [[5, 6, 7, 8, 9, 10]], [[1] * 6], [list(range(6))])
    trained, sampled = (
        jax.jit(lambda params: model.unembed(params, {}, model.hidden(params, {}, *rows)[0]))(held)
        for held in (params, jax.jit(model.gather)(params))
    )
    np.testing.assert_array_equal(trained, sampled)


def test_costs_by_hand():
    # attention D H (2 N + 2 K) = 8 * 2 * 12 = 192, swiglu 3 * 8 * 12 = 288; 2 layers; unembedding 20 * 8 = 160
    assert CONFIG.matmul_parameters() == 2 * (192 + 288) + 160
    # 6 * 1120 + 12 * L 2 * N 4 * H 2 * 16 / 2
    assert CONFIG.train_flops_per_token(16) == 6 * 1120 + 12 * 16 * 8
    without_unembedding = 1120 - CONFIG.vocab_size * CONFIG.width
    assert CONFIG.train_flops_per_token(16, scalar=True) == 6 * (without_unembedding + CONFIG.width) + 12 * 16 * 8


def test_a_value_head_starts_at_zero_and_is_linear(one_device):
    # h . head + bias with head (1, 2, 0, ...) and bias 3, on h = (1, .5, 9, ...): 1 + 1 + 3
    head = value_head(CONFIG)
    params = jax.jit(head.init)(jax.random.key(0))
    h_BTD = jnp.full((1, 1, 8), 9.0).at[0, 0, :2].set(jnp.asarray([1.0, 0.5]))
    assert not np.asarray(head.values(params, h_BTD)).any()
    changed = {"head_D": jnp.zeros(8).at[:2].set(jnp.asarray([1.0, 2.0])), "bias_1": jnp.asarray([3.0])}
    np.testing.assert_allclose(head.values(changed, h_BTD), [[5.0]])
