"""Where a stage goes on: at its newest good checkpoint, with the rows that were logged up to it."""

import contextlib
from pathlib import Path
from typing import Any

import jax

from gptjax.run.checkpoint import Checkpoints
from gptjax.run.experiment import Experiment
from gptjax.run.hosts import on_first
from gptjax.run.metrics import MetricsLog, NoLog, read_metrics
from gptjax.run.task import Task
from gptjax.tree import outcome
from gptjax.types import TrainState


def restored(
    task: Task, experiment: Experiment, checkpoints: Checkpoints, log: MetricsLog | NoLog, trunk: Path | None
) -> tuple[TrainState, dict[str, Any]]:
    """This run's newest good checkpoint, else its trunk's, else another run's weights or fresh ones; and the counts.

    No second state is made beside the one that is returned: the devices may have no room for it.
    """
    key = jax.random.key(experiment.seed)
    shapes = outcome(task.init, key, mesh=jax.sharding.get_mesh())
    found, place, advice = checkpoints.restore(shapes), checkpoints.folder, "choose another --workdir"
    if found is None and trunk is not None:
        found = load_state(trunk, shapes, experiment.steps)
        place, advice = trunk / "checkpoints", "leave out branch_from, which goes on from there with the same data"
    reached = max((row["step"] for row in logged_rows(checkpoints)), default=0)
    if found is None:
        on_first(lambda: log.resume(0))
        about = {"tokens": 0, "rollbacks": 0, "reached": reached, "data_fingerprint": task.data_fingerprint}
        begin = jax.jit(task.init) if task.start is None else task.start
        return begin(key), about
    state, about = found
    if about["data_fingerprint"] != task.data_fingerprint:
        raise ValueError(
            f"the data or the tokenizer changed since the checkpoint in {place} (fingerprint "
            f"{about['data_fingerprint']} then, {task.data_fingerprint} now): restore the data, or {advice}"
        )
    step = int(state.step)
    on_first(lambda: log.resume(step))
    return state, about | {"reached": max(about["reached"], reached)}


def logged_rows(checkpoints: Checkpoints) -> list[dict[str, Any]]:
    """The rows that this stage has logged so far, in any process."""
    path = checkpoints.folder.parent / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def load_state(folder: Path, abstract_state: TrainState, steps: int) -> tuple[TrainState, dict[str, Any]]:
    """The whole state that a finished stage ended with, for a run of `steps` steps that branches off it.

    Returns:
        (state, what was said about it, its seconds left out).

    Raises:
        ValueError: no checkpoint there, or one that is as far as the branch is to go.
    """
    place, found = folder / "checkpoints", None
    if place.is_dir():  # else Checkpoints would make it
        with contextlib.closing(Checkpoints(place, keep=1)) as checkpoints:
            found = checkpoints.restore(abstract_state)
    if found is None:
        raise ValueError(f"branch_from: no checkpoint in {place}: has that stage been trained?")
    state, about = found
    if int(state.step) >= steps:
        raise ValueError(f"branch_from: {folder} ended at step {int(state.step)}, this run at {steps}: give more steps")
    return state, about | {"seconds_by_use": {}}
