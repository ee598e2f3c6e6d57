"""From a recipe to a finished run: one driver for every stage and task."""

import json
import os
from pathlib import Path
from typing import Any

import jax

from gptjax.run.checkpoint import Checkpoints
from gptjax.run.experiment import Experiment, Recipe, build_task, check_layout, task_kind
from gptjax.run.goodput import Goodput
from gptjax.run.mesh import bytes_per_device, make_mesh
from gptjax.run.metrics import MetricsLog
from gptjax.run.report import write_report
from gptjax.run.retention import Retention
from gptjax.run.stop import Stop
from gptjax.run.task import Setup
from gptjax.run.training import train
from gptjax.run.workdir import claim, write_atomically


def run(recipe: Recipe, workdir: Path) -> Path:
    """Run every stage that is not finished yet, and write the report.

    Args:
        recipe: the stages.
        workdir: folder of this run; the same call goes on where an interrupted one stopped.

    Returns:
        Path of report.html.

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
    claim(recipe, workdir, environment())
    with Stop() as stop:
        for name, experiment in recipe.stages.items():
            if not (workdir / name / "result.json").exists():
                _run_stage(recipe, name, experiment, meshes[name], workdir, stop)
                write_report(workdir)
    return write_report(workdir)


def _run_stage(recipe: Recipe, name: str, experiment: Experiment, mesh: Any, workdir: Path, stop: Stop) -> None:
    folder, goodput = workdir / name, Goodput()

    def stage_folder(other: str) -> Path:
        return workdir / other if other in recipe.stages else Path(other)

    with jax.set_mesh(mesh):
        setup = Setup(
            model=experiment.model,
            optimizer=experiment.optimizer,
            steps=experiment.steps,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            folder=folder,
            mesh=mesh,
            stage_folder=stage_folder,
        )
        with stop.interruptible():
            task = build_task(experiment, setup)
        keep = Retention(newest=experiment.keep, best=experiment.keep_best, every=experiment.keep_every)
        checkpoints = Checkpoints(folder / "checkpoints", keep=keep, failures=experiment.faults.failed_saves)
        log = MetricsLog(folder)
        try:
            state, about = train(name, experiment, task, checkpoints, log, stop, goodput)
            result = {
                "task": task_kind(experiment),
                "steps": experiment.steps,
                "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
                "state_bytes_per_device": bytes_per_device((state.params, state.opt_state)),
            }
            write_atomically(folder / "result.json", json.dumps(result | about, indent=1))
        finally:
            log.close()
            checkpoints.close()


def environment() -> dict[str, str]:
    """What the report says of where a run ran."""
    import platform

    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
