"""muP: the rules by hand, and the coordinate check, which the standard parametrization must fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax import dims
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.model_types import Ratio
from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.train.lm import lm_step
from gptjax.train.update import initial_state
from gptjax.types import LmBatch

BASE = ModelConfig(vocab_size=32, layers=2, width=32, heads=2, max_length=16, activation="relu2", tied=False, unroll=2)


def at(width, *, mup=True, **changes):
    """The base model at another width, heads of 16."""
    return dataclasses.replace(
        BASE, width=width, heads=width // 16, mup_base_width=32 if mup else None, **changes
    )  # fmt: skip


def test_ratios_follow_role_and_letters():
    # width 4 times the base: matrices see 4 times as many inputs; 6 layers are 3 times the base of 2
    ratios = language_model(at(128, layers=6, unroll=1, mup_base_layers=2)).ratios
    assert ratios["blocks"]["mlp"]["w_in_DF"] == Ratio(width=4.0, gradient=12.0)
    assert ratios["blocks"]["mlp_norm"]["scale_D"] == Ratio(width=1.0, gradient=12.0)
    whole = [ratios["embedding_VD"], ratios["unembedding_VD"], ratios["final_norm"]["scale_D"]]
    assert whole == [Ratio(width=1.0, gradient=4.0)] * 3
    assert language_model(BASE).ratios is None


def test_a_step_by_hand(x64):
    # a gradient of 1: Adam's first step is g / (g + eps), with eps / 4 where gradients are a quarter of the base's; a
    # matrix of 4 times the inputs moves by lr / 4, and decays by lr x decay all the same
    roles, letters = {"w": "matrix", "e": "embedding"}, {"w": "LDF", "e": "VD"}
    ratios = {"w": Ratio(width=4.0, gradient=4.0), "e": Ratio(width=1.0, gradient=4.0)}
    params, grads = {"w": jnp.full((1, 1, 1), 2.0), "e": jnp.full((1, 1), 2.0)}, None
    grads = jax.tree.map(jnp.ones_like, params)
    config = OptimizerConfig(peak_lr=0.1, schedule="constant", eps=1.0, weight_decay=0.5, clip_norm=None)
    tx = optimizer(config, 9, roles, letters, ratios)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * (1 / (1 + 1 / 4) / 4 + 0.5 * 2.0), rtol=1e-9)
    np.testing.assert_allclose(updates["e"], -0.1 * 1 / (1 + 1 / 4), rtol=1e-9)


def test_at_the_base_width_the_optimizer_is_the_standard_one(one_device):
    roles, letters = {"w": "matrix"}, {"w": "LDF"}
    params, grads = {"w": jnp.ones((1, 2, 2))}, {"w": jnp.full((1, 2, 2), 0.3)}
    config = OptimizerConfig(peak_lr=0.1, schedule="constant", weight_decay=0.5)
    both = [optimizer(config, 9, roles, letters, ratios) for ratios in (None, {"w": Ratio(width=1.0, gradient=1.0)})]
    found = [tx.update(grads, tx.init(params), params)[0]["w"] for tx in both]
    np.testing.assert_array_equal(*found)


def test_muon_is_refused():
    with pytest.raises(ValueError, match="muon has no muP rule"):
        optimizer(
            OptimizerConfig(name="muon", peak_lr=0.1),
            9,
            {"w": "matrix"},
            {"w": "LDF"},
            {"w": Ratio(width=2.0, gradient=2.0)},
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mup_base_width": 0}, "mup_base_width must be at least 1"),
        ({"mup_base_layers": 2}, "mup_base_layers needs model.mup_base_width"),
        ({"mup_base_head_width": 8}, "mup_base_head_width needs model.mup_base_width"),
        ({"mup_base_width": 32, "mup_base_head_width": 0}, "mup_base_head_width must be at least 1"),
    ],
)
def test_wrong_bases_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


def batch(mesh):
    tokens_BT = np.random.default_rng(0).integers(0, 32, (4, 16)).astype(np.int32)
    arrays = {
        "tokens_BT": tokens_BT,
        "targets_BT": np.roll(tokens_BT, -1, 1),
        "segments_BT": np.ones_like(tokens_BT),
        "positions_BT": np.tile(np.arange(16, dtype=np.int32), (4, 1)),
        "weights_BT": np.ones(tokens_BT.shape, np.float32),
    }
    spec = NamedSharding(mesh, dims.act_spec("BT"))
    return LmBatch(**{name: jax.device_put(value, spec) for name, value in arrays.items()})


def coordinates(config, mesh, steps=4):
    """Mean change of keys and values of each layer, and mean size of logits, after a few steps."""
    model = language_model(config)
    adam = OptimizerConfig(peak_lr=2**-6, schedule="constant", clip_norm=None)
    tx = optimizer(adam, steps, model.roles, model.letters, model.ratios)
    rows = batch(mesh)
    step = jax.jit(lambda state: lm_step(state, rows, model=model, optimizer=tx)[0])

    @jax.jit
    def look(params):
        cache, h_BTD = model.prefill(
            params, {}, rows.tokens_BT, rows.segments_BT, rows.positions_BT, slots=rows.tokens_BT.shape[1]
        )
        return jnp.stack(cache.k_BKSH), jnp.stack(cache.v_BKSH), model.unembed(params, {}, h_BTD)

    state = initial_state(jax.jit(model.init)(jax.random.key(0)), tx, jax.random.key(1))
    before = look(state.params)
    for _ in range(steps):
        state = step(state)
    moved = [np.abs(np.asarray(b) - np.asarray(a)) for a, b in zip(before, look(state.params), strict=True)]
    return np.array([*moved[0].mean(axis=(1, 2, 3, 4)), *moved[1].mean(axis=(1, 2, 3, 4)), moved[2].mean()])


def slopes(mup, mesh):
    """Growth of each coordinate's change with the width, in powers of it."""
    widths = [32, 64, 128]
    sizes = np.log2([coordinates(at(width, mup=mup), mesh) for width in widths])
    return np.polyfit(np.log2(widths), sizes, 1)[0]


@pytest.mark.slow
def test_coordinates_change_alike_at_every_width_and_in_the_standard_parametrization_they_do_not(one_device):
    with_mup, standard = slopes(True, one_device), slopes(False, one_device)
    print("muP", with_mup.round(2), "standard", standard.round(2))
    assert np.abs(with_mup).max() < 0.1
    assert standard.max() > 0.2


def hidden_of(config, params, rows):
    run = jax.jit(language_model(config).hidden)
    return run(params, {}, rows.tokens_BT, rows.segments_BT, rows.positions_BT)[0]


def test_at_the_base_the_blocks_are_the_standard_ones_and_scores_fall_as_1_over_h(one_device):
    rows = batch(one_device)
    params = jax.jit(language_model(BASE).init)(jax.random.key(0))
    standard = hidden_of(BASE, params, rows)
    for head_width in (None, 16):
        base = dataclasses.replace(BASE, mup_base_width=32, mup_base_head_width=head_width)
        np.testing.assert_array_equal(hidden_of(base, params, rows), standard)
    # heads of 16 where the base has 4: scores are scaled by 4 ** .5 / 16, half of 16 ** -.5, as if queries were half
    wide = dataclasses.replace(BASE, mup_base_width=32, mup_base_head_width=4)
    attention = params["blocks"]["attention"]
    halved = params["blocks"] | {"attention": attention | {"wq_DNH": attention["wq_DNH"] / 2}}
    found = hidden_of(wide, params, rows)
    np.testing.assert_allclose(found, hidden_of(BASE, params | {"blocks": halved}, rows), rtol=1e-5, atol=1e-6)
    assert np.abs(found - standard).max() > 1e-3


def test_depth_scaling_halves_what_each_block_adds_at_twice_the_base_layers(one_device):
    # a block adds attention and mlp over the depth ratio: the same as with half of the two matrices that they end in
    rows = batch(one_device)
    plain, scaled = at(32, layers=4, unroll=4), at(32, layers=4, mup_base_layers=2, unroll=4)
    params = jax.jit(language_model(plain).init)(jax.random.key(0))

    blocks = params["blocks"]
    attention = blocks["attention"] | {"wo_NHD": blocks["attention"]["wo_NHD"] / 2}
    mlp = blocks["mlp"] | {"w_out_FD": blocks["mlp"]["w_out_FD"] / 2}
    halved = params | {"blocks": blocks | {"attention": attention, "mlp": mlp}}
    found = hidden_of(scaled, params, rows)
    np.testing.assert_allclose(found, hidden_of(plain, halved, rows), rtol=1e-5, atol=1e-6)
    assert np.abs(found - hidden_of(plain, params, rows)).max() > 0.1
