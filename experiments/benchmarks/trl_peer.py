"""What the benchmarks against TRL share: the same small GPT-2 on both sides, timing by turns, the table.

TRL and torch come with the extra `peers`.
"""
# pyright: reportMissingImports=false

import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import torch
import transformers
import trl
from tokenizers import Tokenizer, models
from transformers import GPT2Config, PreTrainedTokenizerFast, TrainerCallback

from gptjax.model.config import ModelConfig
from gptjax.run.progress import table

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")  # theirs


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A GPT-2-style model: layers, width D, heads, vocabulary, longest row (tokens)."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    vocabulary: int = 1024
    length: int = 128

    def gptjax(self) -> ModelConfig:
        """GPT-2's block by gptjax's switches; the two layers are written out, which a CPU prefers."""
        return ModelConfig(
            vocab_size=self.vocabulary,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            max_length=self.length,
            positions="learned",
            norm="layer",
            activation="gelu",
            bias=True,
            unroll=self.layers,
        )

    def gpt2(self) -> GPT2Config:
        """The same model in transformers, without dropout."""
        return GPT2Config(
            vocab_size=self.vocabulary,
            n_layer=self.layers,
            n_embd=self.width,
            n_head=self.heads,
            n_positions=self.length,
            num_labels=1,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=self.vocabulary,
        )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One word per token; padding lies outside the vocabulary and occurs nowhere, for all rows are equally long."""
        words = {f"w{number}": number for number in range(self.vocabulary)} | {"<pad>": self.vocabulary}
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="<pad>", eos_token="<pad>"
        )

    def trunk_flops(self, tokens: int, keys: float) -> float:
        """Forward FLOPs of the blocks for `tokens` tokens that look at `keys` keys each (a multiply-add is 2)."""
        return tokens * self.layers * (24.0 * self.width**2 + 4.0 * keys * self.width)

    def unembedding_flops(self, tokens: int) -> float:
        return 2.0 * tokens * self.width * self.vocabulary


class Turns(TrainerCallback):
    """Times each of TRL's updates and, after it, one of gptjax's: A B A B in one run of TRL's own loop.

    The first `warmup` turns of either side are kept apart: gptjax compiles in its first one.
    """

    def __init__(self, ours: Callable[[], None], warmup: int):
        self.ours, self.warmup = ours, warmup
        self.seconds: dict[str, list[float]] = {"trl": [], "gptjax": []}
        self._began = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self._began = time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self._began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        ended = time.perf_counter()
        self.seconds["trl"].append(ended - self._began)
        self.ours()
        self.seconds["gptjax"].append(time.perf_counter() - ended)
        self._began = time.perf_counter()  # TRL's PPO has no on_step_begin

    def timed(self, side: str) -> list[float]:
        return self.seconds[side][self.warmup :]


class ForwardTokens:
    """Counts the tokens that go through modules of torch, and the updates that an optimizer makes."""

    def __init__(self):
        self.tokens: dict[str, int] = {}
        self.updates = 0

    def watch(self, module: torch.nn.Module, name: str) -> None:
        self.tokens[name] = 0

        def count(module, args, kwargs):
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            self.tokens[name] += ids.numel()

        module.register_forward_pre_hook(count, with_kwargs=True)

    def watch_updates(self, optimizer: torch.optim.Optimizer) -> None:
        def count(*_):
            self.updates += 1

        optimizer.register_step_post_hook(count)


def use_cores(cores: int) -> None:
    """Both sides compute on `cores` threads."""
    torch.set_num_threads(cores)
    if os.cpu_count() != cores:
        print(f"note: XLA uses all {os.cpu_count()} cores of this machine, torch {cores}: give them the same")


def report(
    title: str, turns: Turns, flops: dict[str, float], about: dict[str, Any], as_json: bool, goal: float
) -> None:
    """Medians, spread, predicted FLOPs and the ratio, as a table or one JSON object."""
    sides = {}
    for side, count in flops.items():
        seconds = turns.timed(side)
        median = statistics.median(seconds)
        sides[side] = {
            "median_seconds": median,
            "least_seconds": min(seconds),
            "most_seconds": max(seconds),
            "first_seconds": turns.seconds[side][0],
            "predicted_gflop": count / 1e9,
            "gflop_per_second": count / 1e9 / median,
        }
    ratio = sides["trl"]["median_seconds"] / sides["gptjax"]["median_seconds"]
    found = {
        "title": title,
        "ratio": ratio,
        "goal": goal,
        "rounds": len(turns.timed("trl")),
        "sides": sides,
        "load_average": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
    } | about
    if as_json:
        print(json.dumps(found))
        return
    columns = ["side", "median s", "least s", "most s", "first s (compiles)", "predicted GFLOP", "GFLOP/s"]
    rows = [[side, *figures.values()] for side, figures in sides.items()]
    table(f"{title}: {found['rounds']} rounds by turns", columns, rows)
    print(f"gptjax is {ratio:.2f} times as fast as TRL (goal {goal:g})")
    print(", ".join(f"{name} {value}" for name, value in (about | found["versions"]).items()))
