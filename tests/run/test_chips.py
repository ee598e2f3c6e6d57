"""Peak figures by device kind, and model FLOPs against what XLA counts."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from gptjax import dims
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.run.chips import peak_flops
from gptjax.train.rows import heldout_sums
from gptjax.types import LmBatch, TrainState


def test_the_peak_of_a_slice_is_the_sum_of_its_chips():
    # TPU v5e: 197 TFLOP/s in bfloat16; 16 chips
    assert peak_flops(["TPU v5 lite"] * 16) == 16 * 197e12


def test_one_unknown_device_leaves_no_peak():
    assert peak_flops(["TPU v5 lite", "TPU v9"]) is None
    assert peak_flops([]) is None
    assert peak_flops([jax.devices()[0].device_kind]) is None  # a CPU


CONFIGS = {
    "GPT-2": (
        {"width": 512, "heads": 8, "positions": "learned", "norm": "layer", "activation": "gelu", "bias": True},
        512,
    ),
    "grouped queries": ({"width": 512, "heads": 8, "kv_heads": 2, "hidden": 1408, "tied": False}, 512),
    "squared ReLU": ({"width": 768, "heads": 12, "activation": "relu2"}, 256),
    "one wide KV head": ({"width": 512, "heads": 4, "kv_heads": 1, "head_width": 256}, 1024),
    "mostly vocabulary": ({"width": 256, "heads": 2, "layers": 1, "vocab_size": 32000}, 128),
    "deep": ({"width": 1024, "heads": 8, "layers": 4, "vocab_size": 1024}, 64),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_analytic_flops_are_those_of_the_unrolled_program_within_3_percent(one_device, name):
    options, length = CONFIGS[name]
    sizes = {"vocab_size": 8192, "layers": 2, "max_length": 1024} | options
    config = ModelConfig(**sizes, unroll=sizes["layers"])  # XLA counts the body of a loop once
    model = language_model(config)

    def placed(x, letters, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(one_device, spec(letters)))

    def row(dtype):
        return placed(jax.ShapeDtypeStruct((2, length), dtype), "BT", dims.act_spec)

    ids, weights = row(jnp.int32), row(jnp.float32)
    batch = LmBatch(tokens_BT=ids, targets_BT=ids, segments_BT=ids, positions_BT=ids, weights_BT=weights)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(partial(placed, spec=dims.param_spec), shapes, model.letters)

    def loss(params, batch):
        state = TrainState(step=0, params=params, opt_state=None, key=None, frozen={}, extra={})  # pyright: ignore
        return heldout_sums(state, batch, model=model).nll_sum

    counted = jax.jit(jax.grad(loss)).lower(params, batch).cost_analysis()["flops"]
    # the reference attention computes the half that a causal mask throws away, too
    assert counted / (2 * length) == pytest.approx(config.train_flops_per_token(length, causal=False), rel=0.03)


def test_causal_attention_is_counted_by_half():
    # 12 L N H T = 12 x 2 x 8 x 64 x 512 for all pairs
    config = ModelConfig(vocab_size=8192, layers=2, width=512, heads=8)
    difference = config.train_flops_per_token(512, causal=False) - config.train_flops_per_token(512)
    assert difference == 12 * 2 * 8 * 64 * 512 / 2
