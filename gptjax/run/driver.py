"""From a recipe to a finished run: one driver for every stage and task."""

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax

from gptjax.config import to_text
from gptjax.files import write_atomically
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.criteria import checked
from gptjax.run.experiment import Experiment, Recipe, build_task, check_layout, setup_of, task_kind
from gptjax.run.goodput import Goodput
from gptjax.run.hosts import check_same, check_shared, first_says, is_first, on_first
from gptjax.run.mesh import bytes_per_device, make_mesh
from gptjax.run.metrics import MetricsLog, NoLog
from gptjax.run.report.recipe import write_report
from gptjax.run.retention import Retention
from gptjax.run.stop import Stop
from gptjax.run.training import Training
from gptjax.run.workdir import claim


def run(recipe: Recipe, workdir: Path) -> Path:
    """Run every stage that is not finished yet, and write the report after each.

    Args:
        recipe: the stages.
        workdir: folder of this run; the same call goes on where an interrupted one stopped.

    Returns:
        Path of report.html.

    Raises:
        ValueError, NumericalFaultError, Preempted: as `train`.
    """
    written: list[Path] = []
    train(recipe, workdir, after_stage=lambda: written.append(write_report(workdir)))
    on_first(lambda: written or write_report(workdir))  # a run that was finished already gets a new one
    return workdir / "report.html"


def train(recipe: Recipe, workdir: Path, *, after_stage: Callable[[], object] = lambda: None) -> None:
    """Run every stage that is not finished yet.

    Args:
        recipe, workdir: as for `run`.
        after_stage: called by the first process when a stage has finished.

    Raises:
        ValueError: something that the user can mend; nothing was overwritten.
        NumericalFaultError: the numbers go wrong again and again.
        Preempted: a signal asked to stop, and what was done is saved.
    """
    meshes = {name: make_mesh(experiment.mesh) for name, experiment in recipe.stages.items()}
    for name, experiment in recipe.stages.items():
        try:
            check_layout(experiment, meshes[name])
        except ValueError as error:
            raise ValueError(f"stage {name}: {error}") from None
    check_same("the experiment", "".join(map(to_text, recipe.stages.values())))
    on_first(lambda: claim(recipe, workdir, environment()))
    check_shared(workdir)
    with Stop() as stop:
        for name, experiment in recipe.stages.items():
            if not first_says((workdir / name / "result.json").exists()):
                _run_stage(recipe, name, experiment, meshes[name], workdir, stop)
                on_first(after_stage)


def _run_stage(recipe: Recipe, name: str, experiment: Experiment, mesh: Any, workdir: Path, stop: Stop) -> None:
    folder, goodput = workdir / name, Goodput()

    def stage_folder(other: str) -> Path:
        return workdir / other if other in recipe.stages else Path(other)

    with jax.set_mesh(mesh):
        setup = setup_of(experiment, folder=folder, mesh=mesh, stage_folder=stage_folder)
        with stop.interruptible():
            task = build_task(experiment, setup)
        check_same("the data", task.data_fingerprint)
        keep = Retention(newest=experiment.keep, best=experiment.keep_best, every=experiment.keep_every)
        checkpoints = Checkpoints(folder / "checkpoints", keep=keep, failures=experiment.faults.failed_saves)
        log = MetricsLog(folder) if is_first() else NoLog()
        with closing(checkpoints), closing(log):
            trunk = None if experiment.branch_from is None else stage_folder(experiment.branch_from)
            state, about = Training(name, experiment, task, checkpoints, log, stop, goodput, trunk).run()
            result = {
                "task": task_kind(experiment),
                "steps": experiment.steps,
                "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
                "state_bytes_per_device": bytes_per_device((state.params, state.opt_state)),
            }
            result |= about
            if experiment.criteria:
                result["criteria"] = checked(experiment.criteria, result["evaluation"])
            on_first(lambda: write_atomically(folder / "result.json", json.dumps(result, indent=1)))


def environment() -> dict[str, str]:
    """What the report says of where a run ran."""
    import platform

    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
