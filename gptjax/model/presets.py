"""The sizes of published models by name."""

import dataclasses
from typing import Any

from gptjax.model.config import ModelConfig


def _gpt2(layers: int, width: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50_257, layers=layers, width=width, heads=heads, max_length=1024, positions="learned", norm="layer",
        activation="gelu", bias=True,
    )  # fmt: skip


def _gpt3(layers: int, width: int, heads: int) -> ModelConfig:
    return dataclasses.replace(_gpt2(layers, width, heads), max_length=2048)


def _llama2(layers: int, width: int, heads: int, kv_heads: int, hidden: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=32_000, layers=layers, width=width, heads=heads, kv_heads=kv_heads, hidden=hidden, max_length=4096,
        tied=False,
    )  # fmt: skip


def _llama3(layers: int, width: int, heads: int, hidden: int) -> ModelConfig:
    llama2 = _llama2(layers, width, heads, 8, hidden)
    return dataclasses.replace(llama2, vocab_size=128_256, max_length=8192, rope_theta=500_000.0)


PRESETS: dict[str, ModelConfig] = {
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "gpt3-small": _gpt3(12, 768, 12),
    "gpt3-medium": _gpt3(24, 1024, 16),
    "gpt3-large": _gpt3(24, 1536, 16),
    "gpt3-xl": _gpt3(24, 2048, 16),
    "gpt3-2.7b": _gpt3(32, 2560, 32),
    "gpt3-6.7b": _gpt3(32, 4096, 32),
    "gpt3-13b": _gpt3(40, 5120, 40),
    "gpt3-175b": _gpt3(96, 12_288, 96),
    "llama2-7b": _llama2(32, 4096, 32, 32, 11_008),
    "llama2-13b": _llama2(40, 5120, 40, 40, 13_824),
    "llama2-70b": _llama2(80, 8192, 64, 8, 28_672),
    "llama3-8b": _llama3(32, 4096, 32, 14_336),
    "llama3-70b": _llama3(80, 8192, 64, 28_672),
    "mixtral-8x7b": dataclasses.replace(
        _llama2(32, 4096, 32, 8, 14_336), max_length=32_768, rope_theta=1e6, experts=8, balance_coefficient=0.02
    ),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The model of that name, with fields of ModelConfig replaced.

    GPT-3's attention is dense in every layer here, where the paper alternates dense and locally banded layers; where
    its table contradicts heads x head width = width, the width of 128 per head decides (XL: 16 heads rather than 24;
    13B: width 5120 rather than 5140).

    Args:
        name: a key of PRESETS, such as "llama2-7b".
        changes: such as dtype="bfloat16", remat="full", or a vocab_size that the tensor axis divides.

    Raises:
        ValueError: no such name.

    Source: Radford et al. 2019 (GPT-2); Brown et al. 2020, arXiv:2005.14165, table 2.1; Touvron et al. 2023,
    arXiv:2307.09288 (Llama 2); Grattafiori et al. 2024, arXiv:2407.21783, table 3 (Llama 3); Jiang et al. 2024,
    arXiv:2401.04088, table 1 (Mixtral), whose coefficient of the balance loss is that of its released configuration.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name], **changes)
