"""IsoFLOP curves on two CPU cores, from bytes of the standard library's source to a prediction that is checked.

    gptjax scale sweep experiments/isoflop_mini.py         # the quick form: about 7 minutes on two free cores
    gptjax scale fit runs/isoflop_quick/runs.jsonl --report runs/isoflop_quick/fit
    gptjax scale recommend runs/isoflop_quick/runs.jsonl --flops 1e13 --vocab-size 256 --head-width 16

`experiments/isoflop_mini.py:full` has four budgets and takes about an hour, `:ci` shows in about a minute that the
machinery works, and `:large_batch` is a lesson: with too large a batch the best size leaves the grid, and the fit says
so. Every size is one trunk of constant learning rate with a decay branch for each budget. Only what the law knows
changes within a sweep: one batch for all runs, the held-out one included, and two layers for all sizes.
Expected figures: docs/scaling.md.
"""

import math
from collections.abc import Mapping
from functools import partial

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.scale.grid import Sweep, Template, Trunk, isoflop
from gptjax.run.tasks.lm import LmTask
from gptjax.scaling.accounting import counts

ROW_TOKENS = 128
SHAPES = {  # name: layers, width; the name is the number of matmul parameters
    "20k": (2, 24),  # one head
    "33k": (2, 32),
    "68k": (2, 48),
    "115k": (2, 64),
    "174k": (2, 80),
    "246k": (2, 96),
    "426k": (2, 128),
    "535k": (2, 144),
    "655k": (2, 160),
}
GRID = ("33k", "68k", "115k", "174k", "246k")


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


def grid(
    budgets: Mapping[float, tuple[str, ...]], batch: int, make: Template = template, **options
) -> tuple[Trunk, ...]:
    """The trunks of a grid of these sizes, with `batch` tokens for an update."""
    return isoflop(MODELS, budgets, make, row_tokens=ROW_TOKENS, batch_tokens=lambda tokens: batch, **options)


def sweep() -> Sweep:
    """Quick: three budgets of four sizes, and twice the largest budget held out."""
    sizes = ("20k", "33k", "68k", "115k")
    held_out = grid({3.2e12: ("33k", "68k", "115k", "174k")}, 512, suffix="_held_out")
    return Sweep(
        name="isoflop_quick",
        trunks=grid(dict.fromkeys((4e11, 8e11, 1.6e12), sizes), 512),
        held_out=held_out,
    )


def full() -> Sweep:
    """Full: four budgets of five sizes, three seeds of one run, and four times the largest budget held out."""
    budgets = {
        2e12: GRID,
        4e12: GRID,
        8e12: ("68k", "115k", "174k", "246k", "426k"),
        1.6e13: ("115k", "174k", "246k", "426k", "655k"),
    }
    seeds = grid({2e12: ("68k",)}, 1024, seeds=(0, 1, 2), suffix="_alone")
    held_out = grid({6.4e13: ("426k", "535k", "655k")}, 1024, suffix="_held_out")
    return Sweep(name="isoflop_full", trunks=(*grid(budgets, 1024), *seeds), held_out=held_out)


def large_batch() -> Sweep:
    """The lesson: 2,048 tokens a batch at 1e12 FLOPs, where the smallest size wins for want of steps."""
    return Sweep(name="isoflop_large_batch", trunks=grid({1e12: GRID, 2e12: GRID}, 2048))


def ci() -> Sweep:
    """Two budgets of three sizes in about a minute; it says nothing about exponents."""
    budgets = dict.fromkeys((2e10, 4e10), ("20k", "33k", "68k"))
    return Sweep(name="isoflop_ci", trunks=grid(budgets, 512, partial(template, heldout_fraction=0.003)))
