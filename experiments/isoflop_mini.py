"""IsoFLOP curves on two CPU cores, from bytes of the standard library's source to a prediction that is checked.

    gptjax scale sweep experiments/isoflop_mini.py         # the quick form: about 10 minutes on two free cores
    gptjax scale fit runs/isoflop_quick/runs.jsonl --report runs/isoflop_quick/fit
    gptjax scale recommend runs/isoflop_quick/runs.jsonl --flops 1e13 --vocab-size 256 --head-width 16

`experiments/isoflop_mini.py:full` has four budgets and takes up to two hours, `:ci` shows in about a minute that the
machinery works, and `:large_batch` is a lesson: with too large a batch the best size leaves the grid, and the fit says
so. Every size is one trunk of constant learning rate with a decay branch for each budget; the batch follows the size's
middle horizon, the learning rate batch and size. Expected figures: docs/scaling.md.
"""

import math
from collections.abc import Mapping
from functools import partial

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.scale.grid import Sweep, Trunk, isoflop
from gptjax.run.tasks.lm import LmTask
from gptjax.scaling.accounting import counts

ROW_TOKENS = 128
SHAPES = {  # name: layers, width; the name is the number of matmul parameters
    "20k": (1, 32),
    "33k": (2, 32),
    "68k": (2, 48),
    "115k": (2, 64),
    "164k": (3, 64),
    "251k": (3, 80),
    "356k": (3, 96),
    "631k": (4, 112),
    "819k": (4, 128),
}
GRID = ("33k", "68k", "115k", "164k", "251k")


def model(layers: int, width: int) -> ModelConfig:
    """Untied, heads of 16, squared ReLU, standard parametrization at these widths."""
    return ModelConfig(
        vocab_size=256, layers=layers, width=width, heads=width // 16, max_length=ROW_TOKENS, activation="relu2",
        tied=False, unroll=layers,
    )  # fmt: skip


MODELS = {name: model(*shape) for name, shape in SHAPES.items()}


def template(model: ModelConfig, batch_tokens: int, heldout_fraction: float = 0.015) -> Experiment:
    """AdamW, warm-up of at most 100,000 tokens, linear decay to nothing over the last fifth.

    The rate falls with the cube root of the size, as the basins of 68k, 251k and 631k say. One rate for all sizes makes
    the larger ones worse for each token than the smaller ones, which bends every profile to the left (docs/log.md,
    2026-11-26).
    """
    return Experiment(
        task=_task(heldout_fraction),
        model=model,
        optimizer=OptimizerConfig(
            peak_lr=0.147 * math.sqrt(batch_tokens / 1024) / counts(model).matmul ** (1 / 3), schedule="wsd",
            decay_fraction=0.2, final_fraction=0.0, warmup_steps=min(150, 100_000 // batch_tokens), b2=0.99,
        ),
        steps=1,
        batch_size=batch_tokens // ROW_TOKENS,
        save_every=2000,
    )  # fmt: skip


def _task(heldout_fraction: float) -> LmTask:
    return LmTask(
        source_only=True, byte_tokens=True, heldout_fraction=heldout_fraction, row_tokens=ROW_TOKENS, samples=0
    )  # fmt: skip


def batch_tokens(tokens: float) -> int:
    """512 at a million tokens, growing with the power .38, as a power of two between 512 and 4,096."""
    wished = 512 * (tokens / 1e6) ** 0.38
    return int(min(4096, max(512, 2 ** round(math.log2(wished)))))


def grid(budgets: Mapping[float, tuple[str, ...]], **options) -> tuple[Trunk, ...]:
    """The trunks of a grid of these sizes."""
    return isoflop(MODELS, budgets, options.pop("template", template), row_tokens=ROW_TOKENS, **options)


def sweep() -> Sweep:
    """Quick: three budgets of four sizes, and twice the largest budget held out."""
    sizes = ("20k", "33k", "68k", "115k")
    batch = {"batch_tokens": lambda tokens: 512}
    held_out = grid({2.24e12: ("33k", "68k", "115k", "164k")}, suffix="_held_out", **batch)
    budgets = dict.fromkeys((2.8e11, 5.6e11, 1.12e12), sizes)
    return Sweep(name="isoflop_quick", trunks=grid(budgets, **batch), held_out=held_out)


def full() -> Sweep:
    """Full: four budgets of five sizes, three seeds of one run, and four times the largest budget held out."""
    budgets = {
        2e12: GRID,
        4e12: GRID,
        8e12: ("68k", "115k", "164k", "251k", "356k"),
        1.6e13: ("115k", "164k", "251k", "356k", "631k"),
    }
    seeds = grid({2e12: ("68k",)}, batch_tokens=batch_tokens, seeds=(0, 1, 2), suffix="_alone")
    held_out = grid({6.4e13: ("356k", "631k", "819k")}, batch_tokens=batch_tokens, suffix="_held_out")
    return Sweep(name="isoflop_full", trunks=(*grid(budgets, batch_tokens=batch_tokens), *seeds), held_out=held_out)


def large_batch() -> Sweep:
    """The lesson: 2,048 tokens a batch at 1e12 FLOPs, where the smallest size wins for want of steps."""
    return Sweep(name="isoflop_large_batch", trunks=grid({1e12: GRID, 2e12: GRID}, batch_tokens=lambda tokens: 2048))


def ci() -> Sweep:
    """Two budgets of three sizes in about a minute; it says nothing about exponents."""
    budgets = dict.fromkeys((2e10, 4e10), ("20k", "33k", "68k"))
    brief = partial(template, heldout_fraction=0.003)
    trunks = grid(budgets, batch_tokens=lambda tokens: 512, template=brief)
    return Sweep(name="isoflop_ci", trunks=trunks)
