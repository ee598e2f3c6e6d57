"""Published models: sizes, counted without memory."""

import math

import jax
import pytest

from gptjax.model.presets import PRESETS, preset
from gptjax.model.pure import language_model
from gptjax.scaling.accounting import counts

# Counted by others on the released weights (GPT-2, Llama, Mixtral).
EXACT = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "mixtral-8x7b": 46_702_792_704,
}
# Table 2.1 of the GPT-3 paper, where counts are rounded.
ROUNDED = {
    "gpt3-small": 125e6,
    "gpt3-medium": 350e6,
    "gpt3-large": 760e6,
    "gpt3-xl": 1.3e9,
    "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13.0e9,
    "gpt3-175b": 175.0e9,
}


def parameters(name):
    params = jax.eval_shape(language_model(PRESETS[name]).init, jax.eval_shape(lambda: jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_every_preset_is_counted():
    assert {*EXACT, *ROUNDED} == {*PRESETS}


@pytest.mark.parametrize("name", EXACT)
def test_parameters_equal_those_of_the_released_weights(name, one_device):
    assert parameters(name) == counts(PRESETS[name]).total == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_are_those_of_the_papers_table(name, one_device):
    assert parameters(name) == pytest.approx(ROUNDED[name], rel=0.02)


def test_a_preset_takes_changes():
    assert preset("gpt2", vocab_size=50_304, remat="full").sizes["V"] == 50_304


def test_an_unknown_preset_is_explained():
    with pytest.raises(ValueError, match="no preset 'gpt5'; there are gpt2, "):
        preset("gpt5")
