"""Every way to hold the reference gives the same log-probabilities, and the same rollout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.train.reference import UpperLayers, held, reference_params, upper_layers, with_frozen_layers
from gptjax.train.response import response_logp
from gptjax.train.rollout import full_rows
from gptjax.types import PromptBatch

SIZES = ModelConfig(vocab_size=16, layers=3, width=8, heads=2, max_length=16)
MODEL = language_model(SIZES)


@pytest.fixture
def mesh():
    chosen = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    with jax.set_mesh(chosen):
        yield chosen


@pytest.fixture
def models(mesh):
    """(policy, reference) that differ in the upper two layers and the final norm."""
    policy = jax.jit(MODEL.init)(jax.random.key(0))
    other = jax.jit(MODEL.init)(jax.random.key(1))
    freeze = with_frozen_layers(optax.sgd(1.0), MODEL, 1)
    change = {"policy": jax.tree.map(lambda a, b: a - b - 0.01, policy, other), "value": {}}
    updates, _ = freeze.update(change, freeze.init({"policy": policy, "value": {}}))
    return policy, jax.tree.map(jnp.add, policy, updates["policy"])


def logp(mesh, policy, reference):
    """f32[4, 4] of fixed responses under a reference that is held in whatever way."""
    tokens = np.random.default_rng(0).integers(0, 16, (4, 8)).astype(np.int32)
    prompts = put(PromptBatch(tokens_BP=tokens[:, :4], lengths_B=np.array([4, 2, 3, 1], np.int32)), mesh)
    responses = put(PromptBatch(tokens_BP=tokens[:, 4:], lengths_B=np.full(4, 4, np.int32)), mesh)

    @jax.jit
    def compute(policy, reference, prompts, tokens_BR):
        names = ("tokens_BT", "segments_BT", "positions_BT")
        mask_BR = jnp.ones_like(tokens_BR, bool)
        rows = dict(zip(names, full_rows(prompts, tokens_BR, mask_BR), strict=True))
        params = reference_params(reference, policy)
        return response_logp(MODEL, params=params, frozen={}, rows=rows, responses=4, temperature=1.0)[0]

    return np.asarray(compute(policy, reference, prompts, responses.tokens_BP))


@pytest.mark.parametrize("how", ["copy", "bfloat16", "host"])
@pytest.mark.parametrize("frozen_layers", [0, 1])
def test_the_reference_says_the_same_however_it_is_held(how, frozen_layers, mesh, models):
    policy, reference = models
    expected = logp(mesh, policy, reference)
    kept = held(reference if frozen_layers == 0 else upper_layers(reference, MODEL, frozen_layers), how)
    found = logp(mesh, policy, kept)
    np.testing.assert_allclose(found, expected, atol=0.03 if how == "bfloat16" else 1e-6)
    assert np.abs(expected - logp(mesh, policy, policy)).max() > 0.1  # a reference of its own
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(kept)}
    assert kinds == ({"pinned_host"} if how == "host" else {"device"})


def test_a_shared_trunk_is_not_stored_again(one_device):
    params = jax.jit(MODEL.init)(jax.random.key(0))
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    upper = upper_layers(params, MODEL, 2)
    assert isinstance(upper, UpperLayers)
    per_layer = sum(x.nbytes for x in jax.tree.leaves(params["blocks"])) // 3
    assert sum(x.nbytes for x in upper.leaves.values()) == size - 2 * per_layer - params["embedding_VD"].nbytes
    assert sum(x.nbytes for x in jax.tree.leaves(held(params, "bfloat16"))) == size // 2


def test_a_copy_is_not_the_policys_buffer(one_device):
    params = jax.jit(MODEL.init)(jax.random.key(0))
    kept = held(params, "copy")
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(kept), strict=True):
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()


def test_frozen_layers_stay_whatever_decays_and_do_not_enter_the_clipped_norm(one_device):
    # layers 0 and 1 and the embedding have huge gradients: only those of layer 2 and of the norm count, to norm 1
    params = {"policy": jax.jit(MODEL.init)(jax.random.key(0)), "value": {"head_D": jnp.ones(8)}}
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1))
    tx = with_frozen_layers(inner, MODEL, 2)
    grads = jax.tree.map(jnp.zeros_like, params)
    grads["policy"]["embedding_VD"] += 1e6
    grads["value"]["head_D"] += 3.0
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["value"]["head_D"], 1 / 8**0.5 + 0.1, rtol=1e-5)
    assert not np.asarray(updates["policy"]["embedding_VD"]).any()
    for leaf in jax.tree.leaves(updates["policy"]["blocks"]):
        assert not np.asarray(leaf[:2]).any()
        assert np.asarray(leaf[2]).any()


def test_freezing_every_layer_is_refused(one_device):
    params = jax.jit(MODEL.init)(jax.random.key(0))
    with pytest.raises(ValueError, match=r"task\.frozen_layers 3 leaves none of the 3 layers to train"):
        upper_layers(params, MODEL, 3)


def test_a_device_without_pinned_host_memory_is_named(one_device, monkeypatch):
    class Device:
        device_kind = "toy"

        def addressable_memories(self):
            return []

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    with pytest.raises(ValueError, match=r"task\.reference 'host' needs pinned host memory, which toy lacks"):
        held({}, "host")
