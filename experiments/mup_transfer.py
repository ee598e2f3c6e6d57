"""Does the best learning rate stay where it is when the width grows? Under muP it should, in the standard one it moves.

    gptjax scale sweep experiments/mup_transfer.py            # 3 widths x 5 rates x 2 parametrizations, 100 steps each
    gptjax scale sweep experiments/mup_transfer.py:panel      # widths 32 to 256, 300 steps

The table's columns width, peak_lr and mup_base_width hold the result; a fit's report draws the basins. The coordinate
check is a test: tests/model/test_mup.py.
"""

import dataclasses

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.scale.grid import Sweep, Trunk, rate_by_batch
from gptjax.run.tasks.lm import LmTask

ROW_TOKENS, BASE_WIDTH = 128, 64


def sweep() -> Sweep:
    """Smoke: widths 32, 64 and 128."""
    return Sweep(
        name="mup_transfer", trunks=(*_grid((32, 64, 128), 100, mup=True), *_grid((32, 64, 128), 100, mup=False))
    )


def panel() -> Sweep:
    """The panel: four widths with muP, three without."""
    return Sweep(
        name="mup_panel", trunks=(*_grid((32, 64, 128, 256), 300, mup=True), *_grid((32, 64, 128), 300, mup=False))
    )  # fmt: skip


def _grid(widths: tuple[int, ...], steps: int, *, mup: bool) -> tuple[Trunk, ...]:
    base = ModelConfig(
        vocab_size=256, layers=2, width=BASE_WIDTH, heads=BASE_WIDTH // 16, max_length=ROW_TOKENS, activation="relu2",
        tied=False, unroll=2, mup_base_width=BASE_WIDTH if mup else None,
    )  # fmt: skip
    kind = "mup" if mup else "standard"
    models = {f"{kind}{width}": dataclasses.replace(base, width=width, heads=width // 16) for width in widths}
    rates = [2.0**power for power in range(-9, -4)]
    return rate_by_batch(models, rates, [2048], _template, tokens=2048 * steps, row_tokens=ROW_TOKENS)


def _template(model: ModelConfig, batch_tokens: int) -> Experiment:
    return Experiment(
        task=LmTask(source_only=True, byte_tokens=True, heldout_fraction=0.015, row_tokens=ROW_TOKENS, samples=0),
        model=model,
        optimizer=OptimizerConfig(
            peak_lr=1e-2, schedule="wsd", decay_fraction=0.3, final_fraction=0.0, warmup_steps=10, b2=0.99
        ),
        steps=1,
        batch_size=batch_tokens // ROW_TOKENS,
        save_every=1000,
    )  # fmt: skip
