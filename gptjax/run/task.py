"""What a task gives to the driver, and what the driver gives to a task."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gptjax.data.loader import Share
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.mesh import host_share
from gptjax.types import Metrics, TrainState


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a task is built from: the experiment's settings, its folder, the mesh, other stages' folders."""

    model: ModelConfig
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    microbatches: int = 1
    seed: int
    folder: Path
    mesh: Mesh
    stage_folder: Callable[[str], Path]

    @property
    def share(self) -> Share:
        """What this process reads of every batch."""
        return host_share(self.mesh)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What of a task follows from its settings alone: enough to compile it for devices that are not there.

    init, step, collect, updates_per_batch: as in Task, which takes them from here.
    batch: jax.ShapeDtypeStructs without a layout, in the place of what `data` gives.
    frozen_models(key) -> arrays like those of Task.frozen_models.
    step_tokens, collect_tokens: positions that a step and a collect compute, padding included.
    step_flops, collect_flops: model FLOPs of them, without what is recomputed.
    """

    init: Callable[[jax.Array], TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    batch: Any
    step_tokens: int
    step_flops: float
    collect: Callable[[TrainState, Any, Any, jax.Array], Any] | None = None
    frozen_models: Callable[[jax.Array], Any] = lambda key: {}
    updates_per_batch: int = 1
    collect_tokens: int = 0
    collect_flops: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One objective, ready for the driver.

    init(key) -> TrainState; jitted by the driver, so every leaf is created in its layout.
    start(key) -> TrainState like that of `init`, with another run's weights; key as for `init` (None: from scratch).
    data(position) -> host batch, of which this process has its rows (`Setup.share`); a pure function of (seed,
    position).
    answered(state, batch, key, position) -> batch with the policy's answers and a program's scores of them, made on the
    host between two jitted calls; not pure if the program is not (None: `collect` does it all).
    collect(state, frozen_models, batch, key) -> what `step` takes; pure; the identity outside reinforcement learning.
    frozen_models: arrays that `collect` reads and nobody changes.
    step(state, batch, *, microbatches=1) -> (state, metrics); pure.
    updates_per_batch: steps on one collected batch; saves fall between batches.
    evaluate(state) -> held-out figures by name, run every `evaluate_every` steps and at the end.
    finish(state) -> (state, evaluation): last touch on the state and everything that the report shows.
    tokens: the metric that counts a step's tokens.  loss: the metric shown while training.
    flops_per_token: model FLOPs of a step over its tokens, or None where a step has no single such figure.
    data_fingerprint: changes when the data does.
    """

    init: Callable[[jax.Array], TrainState]
    start: Callable[[jax.Array], TrainState] | None = None
    data: Callable[[int], Any]
    answered: Callable[[TrainState, Any, jax.Array, int], Any] | None = None
    collect: Callable[[TrainState, Any, Any, jax.Array], Any] | None = None
    frozen_models: Any = field(default_factory=dict)
    step: Callable[..., tuple[TrainState, Metrics]]
    updates_per_batch: int = 1
    evaluate: Callable[[TrainState], dict[str, float]]
    finish: Callable[[TrainState], tuple[TrainState, dict[str, Any]]]
    tokens: str
    loss: str
    flops_per_token: float | None = None
    data_fingerprint: str
