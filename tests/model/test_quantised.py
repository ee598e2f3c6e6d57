"""The Transformer with quantised projections: what it learns, what it decodes, what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import reshard

from gptjax import dims
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.run.mesh import put
from gptjax.train.lm import lm_step
from gptjax.train.update import initial_state
from gptjax.types import LmBatch

SIZES = {"vocab_size": 32, "layers": 1, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 64, "max_length": 32}


@pytest.fixture(autouse=True)
def qwix():
    return pytest.importorskip("qwix", reason="quantised products need qwix: pip install -e '.[quant]'")


def rows(mesh, tokens):
    """A batch whose targets are the next tokens of a row, the last one aside."""
    ones = np.ones_like(tokens[:, :-1])
    batch = LmBatch(
        tokens_BT=tokens[:, :-1],
        targets_BT=tokens[:, 1:],
        segments_BT=ones,
        positions_BT=(ones.cumsum(1) - 1).astype(np.int32),
        weights_BT=ones.astype(np.float32),
    )
    return put(batch, mesh)


def counting(rng, count=16, length=16):
    """Rows that count up in steps of 1 to 3 from anywhere, modulo 32."""
    start, step = rng.integers(0, 32, (count, 1)), rng.integers(1, 4, (count, 1))
    return ((start + step * np.arange(length + 1)) % 32).astype(np.int32)


def final_loss(mesh, steps=30, **switches):
    model = language_model(ModelConfig(**SIZES, **switches))
    tx = optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=3), steps, model.roles, model.letters)
    params = jax.jit(model.init)(jax.random.key(0))
    state = initial_state(params, tx, jax.random.key(1))
    step, rng = jax.jit(partial(lm_step, model=model, optimizer=tx)), np.random.default_rng(0)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, rows(mesh, counting(rng)))
        losses.append(float(metrics["lm/nats_per_token"]))
    return losses[0], float(np.mean(losses[-3:]))


@pytest.mark.slow
def test_thirty_steps_lose_hardly_anything(one_device):
    first, last = final_loss(one_device)
    assert last < 0.6 * first
    for matmuls in ("int8", "fp8"):
        _, found = final_loss(one_device, matmuls=matmuls)
        assert found != last
        assert found == pytest.approx(last, rel=0.05), matmuls


def test_decoding_multiplies_as_the_forward_pass_does(one_device):
    batch = rows(one_device, counting(np.random.default_rng(0), count=4, length=9))
    tokens_BT, segments_BT, positions_BT = batch.tokens_BT, batch.segments_BT, batch.positions_BT

    def logits(matmuls):
        """Of the last position: by a forward pass over the row, and by one decoding step after eight tokens."""
        model = language_model(ModelConfig(**SIZES, matmuls=matmuls))
        params = jax.jit(model.init)(jax.random.key(0))

        def both(params):
            h_BTD, _ = model.hidden(params, {}, tokens_BT, segments_BT, positions_BT)
            whole = model.unembed(params, {}, h_BTD)[:, 8]
            params = model.gather(params)
            prompt = tokens_BT[:, :8], segments_BT[:, :8], positions_BT[:, :8]
            cache, _ = model.prefill(params, {}, *prompt, slots=9)
            segments_BS = reshard(segments_BT, dims.act_spec("BS"))
            _, h_BTD = model.decode(params, {}, cache, tokens_BT[:, 8:], segments_BS, positions_BT[:, 8:], jnp.int32(8))
            return whole, model.unembed(params, {}, h_BTD, decoding=True)[:, 0]

        return map(np.asarray, jax.jit(both)(params))

    (full, _), (whole, decoded) = logits("full"), logits("int8")
    far, rounding = (np.abs(other - whole).max() for other in (decoded, full))
    assert far < rounding / 20, (far, rounding)


@pytest.mark.slow
def test_recomputation_changes_no_gradient(one_device):
    batch = rows(one_device, counting(np.random.default_rng(0), count=2))

    def gradient(remat):
        model = language_model(ModelConfig(**SIZES, matmuls="int8", remat=remat))
        params = jax.jit(model.init)(jax.random.key(0))
        about = batch.tokens_BT, batch.segments_BT, batch.positions_BT
        return jax.jit(jax.grad(lambda p: jnp.sum(model.hidden(p, {}, *about)[0] ** 3)))(params)

    for a, b in zip(jax.tree.leaves(gradient("none")), jax.tree.leaves(gradient("matmuls")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4 * np.abs(b).max())


def test_a_block_keeps_results_not_integers(one_device):
    """With remat matmuls: what the forward pass hands to the backward pass has no int32."""
    model = language_model(ModelConfig(**SIZES, matmuls="int8", remat="matmuls"))
    batch = rows(one_device, counting(np.random.default_rng(0), count=2))
    about = batch.tokens_BT, batch.segments_BT, batch.positions_BT
    _, kept = jax.eval_shape(
        lambda p: jax.vjp(lambda p: model.hidden(p, {}, *about)[0], p), jax.jit(model.init)(jax.random.key(0))
    )
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(kept)]
    assert ((1, 2, 16, 64), jnp.float32) in shapes  # L, B, T, F: what went into the activation
    assert not [shape for shape, dtype in shapes if dtype == jnp.int32 and len(shape) > 3], shapes


def test_experts_are_refused():
    with pytest.raises(
        ValueError, match=r"model.matmuls 'int8' does not know experts \(model.experts 4\): choose 'full'"
    ):
        ModelConfig(**SIZES, experts=4, matmuls="int8")
