"""Counts of parameters and FLOPs: equal to the arrays of the model and to published tables."""

import math

import jax
import pytest

from gptjax.model.config import ModelConfig
from gptjax.model.presets import PRESETS
from gptjax.model.pure import language_model
from gptjax.scaling.accounting import FLOP_CONVENTIONS, counts, every_count, flops_per_token

GPT = {"positions": "learned", "norm": "layer", "activation": "gelu", "bias": True}
LLAMA = {"activation": "swiglu", "tied": False}


@pytest.mark.parametrize("switches", [GPT, LLAMA, {"activation": "relu2", "kv_heads": 2, "head_width": 6}], ids=str)
def test_parts_add_up_to_the_arrays_of_the_model(switches, one_device):
    config = ModelConfig(vocab_size=20, layers=3, width=8, heads=4, hidden=12, max_length=16, **switches)
    arrays = jax.eval_shape(language_model(config).init, jax.random.key(0))
    assert counts(config).total == sum(math.prod(x.shape) for x in jax.tree.leaves(arrays))


@pytest.mark.parametrize(
    ("layers", "width", "heads", "head_width", "millions"),
    [(12, 768, 12, 64, 125), (24, 1024, 16, 64, 356), (24, 1536, 16, 96, 760), (24, 2048, 16, 128, 1320),
     (32, 2560, 32, 80, 2650), (32, 4096, 32, 128, 6660), (40, 5120, 40, 128, 12850), (96, 12288, 96, 128, 174600)],
)  # fmt: skip
def test_gpt3_sizes_of_table_2_1(layers, width, heads, head_width, millions):
    # Brown et al. 2020, tables 2.1 and D.1; table 2.1 prints 24 heads where only 16 of 128 make
    # 1,320 M, and a width of 5,140 where only 5,120 makes 12,850 M
    config = ModelConfig(
        vocab_size=50257, layers=layers, width=width, heads=heads, head_width=head_width, max_length=2048, **GPT
    )
    assert counts(config).total / 1e6 == pytest.approx(millions, rel=0.004)


def test_kaplan_counts_blocks_alone():
    # 12 L D^2, from L 1 D 8 (768 parameters) to L 48 D 1600 (1.5 billion), Kaplan et al. 2020, section 2.1
    small = ModelConfig(vocab_size=50257, layers=1, width=8, heads=1, activation="gelu")
    assert counts(small).block_matmul == 768
    assert counts(PRESETS["gpt2-xl"]).block_matmul == 12 * 48 * 1600**2
    # without tables, biases and norms are all that is left beside the matrices
    assert counts(small).non_embedding == 768 + 3 * 8


@pytest.mark.parametrize(
    ("millions", "width", "head_width", "heads", "layers"),
    [(44, 512, 64, 8, 8), (74, 640, 64, 10, 10), (306, 1024, 64, 16, 20), (552, 1280, 128, 10, 24),
     (1143, 1792, 128, 14, 26), (6796, 3584, 128, 28, 40), (16183, 5120, 128, 40, 47)],
)  # fmt: skip
def test_chinchilla_sizes_of_table_a9(millions, width, head_width, heads, layers):
    # their attention has relative positions besides: a matrix and two vectors in each layer
    config = chinchilla(width, head_width, heads, layers)
    relative = layers * (width**2 + 2 * width)
    total = counts(config).total - counts(config).position + relative
    assert total / 1e6 == pytest.approx(millions, rel=0.012)


def chinchilla(width, head_width, heads, layers):
    return ModelConfig(
        vocab_size=32000, layers=layers, width=width, heads=heads, head_width=head_width, max_length=2048, **GPT
    )


@pytest.mark.parametrize(
    ("flops", "width", "head_width", "heads", "layers"),
    [(929877196800, 640, 64, 10, 10), (4135248199680, 1024, 64, 16, 20), (7353453772800, 1280, 128, 10, 24),
     (14670316437504, 1792, 128, 14, 26), (20220437594112, 2048, 128, 16, 28), (83021046743040, 3584, 128, 28, 40)],
)  # fmt: skip
def test_chinchilla_flops_of_table_a4(flops, width, head_width, heads, layers):
    # one row of 2,048 tokens: blocks alone; to the printed digits 9.30e11, 4.14e12, 7.35e12, 1.47e13, 2.02e13, 8.30e13
    assert flops_per_token(chinchilla(width, head_width, heads, layers), 2048, "hoffmann") * 2048 == flops


def test_every_convention_by_hand():
    # D 8, N 4, K 2, H 2, F 12, V 20, L 2, T 16, swiglu, tied; blocks 2 (192 + 288) = 960, table 160, norms 5 x 8
    config = ModelConfig(vocab_size=20, layers=2, width=8, heads=4, kv_heads=2, hidden=12, max_length=16)
    by_hand = {
        "exact": 6 * 1120 + 12 * 2 * 8 * 8,
        "exact_full": 6 * 1120 + 12 * 2 * 8 * 16,
        "6n_total": 6 * (160 + 960 + 40),
        "6n_non_embedding": 6 * (960 + 40),
        "6n_matmul": 6 * 1120,
        "hoffmann": 3 * (2 * 960 + 2 * 16 * 4 * (4 * 2 + 3)),
        "hoffmann_vocab": 3 * (2 * 960 + 2 * 16 * 4 * (4 * 2 + 3) + 4 * 160),
    }
    assert {name: flops_per_token(config, 16, name) for name in FLOP_CONVENTIONS} == by_hand
    row = every_count(config, 16, 1000)
    assert row["params_total"] == 1160
    assert row["flops_exact"] == 1000 * by_hand["exact"]


def test_an_unknown_convention_is_named():
    with pytest.raises(ValueError, match="'7n': choose one of exact, exact_full"):
        flops_per_token(PRESETS["gpt2"], 1024, "7n")
