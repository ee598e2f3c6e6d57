"""A mixture of experts: routing by hand, dispatch against a loop over experts, and the journey in the program."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import reshard

from gptjax import dims
from gptjax.nn.experts import Expert, activated, chosen_experts, mixture, router_losses
from gptjax.run.mesh import MeshConfig, make_mesh

EVERYTHING_FITS = 4.0  # E / C experts' room: no device can fill it


def test_the_likeliest_experts_share_a_token_by_their_softmax(one_device):
    # logits ln 1, ln 6, ln 2, ln 3: experts 1 and 3, with 6 / 9 and 3 / 9
    logits = jnp.log(jnp.asarray([[[1.0, 6.0, 2.0, 3.0]]]))
    chosen, weights = chosen_experts(logits, 2)
    assert chosen.tolist() == [[[1, 3]]]
    np.testing.assert_allclose(weights, [[[2 / 3, 1 / 3]]], rtol=1e-6)


def test_balance_is_1_for_an_even_choice_and_the_number_of_experts_for_a_single_one(one_device):
    # row 0: four tokens, each sure of an expert of its own; row 1: all sure of expert 2; row 2: padding
    sure = 50.0 * jnp.stack([jnp.eye(4), jnp.eye(4)[jnp.array([2, 2, 2, 2])], jnp.eye(4)])
    chosen = jnp.argmax(sure, axis=-1)[:, :, None]
    real = jnp.asarray([[True] * 4, [True, True, False, False], [False] * 4])
    balance, z = router_losses(sure, chosen, real)
    np.testing.assert_allclose(balance, [1.0, 4.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(z, [2500.0, 2500.0, 0.0], rtol=1e-5)


def test_balance_multiplies_shares_of_choices_with_mean_probabilities(one_device):
    # two experts, probabilities of expert 0: .9, .6, .2; choices 0, 0, 1: 2 x (2/3 x 1.7/3 + 1/3 x 1.3/3) = 46.8 / 45
    p = jnp.asarray([0.9, 0.6, 0.2])
    logits = jnp.log(jnp.stack([p, 1 - p], axis=-1))[None]
    balance, z = router_losses(logits, jnp.asarray([[[0], [0], [1]]]), jnp.ones((1, 3), bool))
    np.testing.assert_allclose(balance, 2 * (2 / 3 * 1.7 / 3 + 1 / 3 * 1.3 / 3), rtol=1e-6)
    np.testing.assert_allclose(z, 0.0, atol=1e-10)


def given(rng, experts=8, choices=2):
    """Tokens, choices and matrices of a small mixture; the last three tokens of each row are padding."""
    sizes = {"B": 4, "T": 6, "D": 6, "F": 8, "E": experts}
    x = rng.normal(size=dims.shape("BTD", sizes))
    w_in, w_gate, w_out = (rng.normal(size=dims.shape(letters, sizes)) for letters in ("EDF", "EDF", "EFD"))
    chosen = np.argsort(rng.random(dims.shape("BTE", sizes)), axis=-1)[:, :, :choices].astype(np.int32)
    weights = rng.random(chosen.shape)
    real = np.ones(x.shape[:2], bool)
    real[:, -3:] = False
    return x, chosen, weights, real, Expert(w_in, w_gate, w_out)


def by_a_loop(x, chosen, weights, real, expert):
    """One token after another, one expert after another."""
    out = np.zeros_like(x)
    for place in np.argwhere(real):
        row = x[tuple(place)]
        for e, weight in zip(chosen[tuple(place)], weights[tuple(place)], strict=True):
            gate = row @ expert.w_gate_EDF[e]
            out[tuple(place)] += weight * (
                (gate / (1 + np.exp(-gate)) * (row @ expert.w_in_EDF[e])) @ expert.w_out_EFD[e]
            )
    return out


def dense(x, chosen, weights, real, expert):
    """Every token through every expert: what `by_a_loop` computes, differentiable."""
    hidden = activated(
        jnp.einsum("btd,edf->btef", x, expert.w_in_EDF), jnp.einsum("btd,edf->btef", x, expert.w_gate_EDF), "swiglu"
    )
    everyone = jnp.einsum("btef,efd->bted", hidden, expert.w_out_EFD)
    share = jnp.einsum("btc,btce->bte", weights, jax.nn.one_hot(chosen, expert.w_in_EDF.shape[0], dtype=x.dtype))
    return jnp.einsum("bted,bte->btd", everyone, share * real[:, :, None])


def placed(arguments):
    """Arguments of a mixture on the current mesh, experts as they are when in use."""
    *rows, expert = arguments
    specs = [dims.act_spec(letters) for letters in ("BTD", "BTC", "BTC", "BT")]
    rows = [reshard(jnp.asarray(x), spec) for x, spec in zip(rows, specs, strict=True)]
    matrices = zip(expert, ("EDF", "EDF", "EFD"), strict=True)
    spread = (None if w is None else reshard(jnp.asarray(w), dims.gathered_spec(y)) for w, y in matrices)
    return *rows, Expert(*spread)


def outcome(layer, arguments):
    """(output, gradients of a function of it)."""

    def loss(x, weights, expert, chosen, real):
        out = layer(x, chosen, weights, real, expert)
        return jnp.sum(jnp.sin(out)), out

    x, chosen, weights, real, expert = arguments
    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(x, weights, expert, chosen, real)
    return jax.tree.map(np.asarray, (out, grads))


MESH = MeshConfig(data=1, expert=2, context=2, tensor=2)


@pytest.mark.parametrize("capacity_factor", [None, EVERYTHING_FITS])
def test_a_mixture_spread_over_devices_equals_a_loop_over_tokens_and_experts(capacity_factor, x64):
    arguments = given(np.random.default_rng(0))
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        by_hand, expected = by_a_loop(*arguments), outcome(dense, jax.tree.map(jnp.asarray, arguments))
    np.testing.assert_allclose(expected[0], by_hand, rtol=0, atol=1e-12)

    def layer(*arguments):
        out, dropped = mixture(*arguments, activation="swiglu", capacity_factor=capacity_factor)
        return out + 0.0 * dropped

    with jax.set_mesh(make_mesh(MESH)):
        found = outcome(layer, placed(arguments))
    chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("everyone", [(0, 1), (5, 2)])
@pytest.mark.parametrize("axes", [{"expert": 4}, {"expert": 2, "context": 2}, {}])
def test_nothing_is_dropped_when_all_tokens_choose_the_same_experts(everyone, axes, x64, monkeypatch):
    monkeypatch.setattr("gptjax.nn.experts.BLOCK_ROWS", 5)  # some devices have many blocks, some none
    x, chosen, weights, real, expert = given(np.random.default_rng(1))
    arguments = (x, np.broadcast_to(np.array(everyone, np.int32), chosen.shape), weights, real, expert)
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        expected = outcome(dense, jax.tree.map(jnp.asarray, arguments))
    mesh = MeshConfig(data=1, **axes)
    with jax.set_mesh(make_mesh(mesh, jax.devices()[: mesh.expert * mesh.context])):
        found = outcome(lambda *x: mixture(*x, activation="swiglu", capacity_factor=None)[0], placed(arguments))
    chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("capacity_factor", "kinds"), [(None, ("all-gather", "reduce-scatter")), (1.25, ("all-to-all",))]
)
def test_tokens_travel_over_the_expert_axis(capacity_factor, kinds):
    with jax.set_mesh(make_mesh(MeshConfig(data=1, expert=4), jax.devices()[:4])):
        layer = partial(mixture, activation="swiglu", capacity_factor=capacity_factor)
        program = jax.jit(layer).lower(*placed(given(np.random.default_rng(0)))).compile().as_text()
    assert all(kind in program for kind in kinds)
    if capacity_factor is None:
        assert "all-to-all" not in program


def doubled_and_trebled(real):
    """(output, dropped) of four tokens 1, 10, 100, 1000 that are squared and doubled (expert 0) or trebled (expert 1).

    Tokens 0, 1, 2 choose expert 0 first, token 3 expert 1, and each has room for ceil(.5 x 4 x 2 / 2) = 2 tokens.
    """
    x = np.array([[[1.0], [10.0], [100.0], [1000.0]]], np.float32)
    chosen = np.array([[[0, 1], [0, 1], [0, 1], [1, 0]]], np.int32)
    expert = Expert(np.ones((2, 1, 1), np.float32), None, np.array([[[2.0]], [[3.0]]], np.float32))
    arguments = placed((x, chosen, np.ones((1, 4, 2), np.float32), np.array([real]), expert))
    out, dropped = jax.jit(partial(mixture, activation="relu2", capacity_factor=0.5))(*arguments)
    return np.asarray(out)[0, :, 0], int(dropped)


def test_first_choices_come_before_second_ones_where_room_is_short(one_device):
    # expert 0 takes tokens 0 and 1, and drops 2 (first choice) and 3 (second); expert 1 takes 3 (first), then 0, and
    # drops 1 and 2
    out, dropped = doubled_and_trebled([True] * 4)
    np.testing.assert_allclose(out, [2 + 3, 2 * 100, 0, 3 * 1e6])
    assert dropped == 4


def test_padding_takes_no_room(one_device):
    # tokens 0 and 1 are padding: expert 0 has room for 2 and 3, expert 1 for 3 and 2
    out, dropped = doubled_and_trebled([False, False, True, True])
    np.testing.assert_allclose(out, [0, 0, 5 * 1e4, 5 * 1e6])
    assert dropped == 0
