"""The loop: mesh, state, step, evaluate, save. One driver for every task."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax.config import to_text
from gptjax.optim.optimizer import learning_rate
from gptjax.run.checkpoint import Checkpoints, abstract
from gptjax.run.chips import peak_flops
from gptjax.run.criteria import checked
from gptjax.run.experiment import Experiment, Recipe, build_task, check_layout, task_kind
from gptjax.run.hosts import check_same, check_shared, first_says, is_first, on_first
from gptjax.run.mesh import bytes_per_device, make_mesh, put
from gptjax.run.metrics import Meter, MetricsLog, NoLog
from gptjax.run.profile import StepProfile
from gptjax.run.progress import Progress, status
from gptjax.run.report import write_report
from gptjax.run.task import Setup, Task
from gptjax.run.workdir import claim, write_atomically
from gptjax.types import TrainState


def run(recipe: Recipe, workdir: Path) -> Path:
    """Run every stage that is not finished yet, and write the report.

    Args:
        recipe: the stages.
        workdir: folder of this run; the same call goes on where an interrupted one stopped.

    Returns:
        Path of report.html.

    Raises:
        ValueError: something that the user can mend; nothing was overwritten.
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
    for name, experiment in recipe.stages.items():
        if not first_says((workdir / name / "result.json").exists()):
            _run_stage(recipe, name, experiment, meshes[name], workdir)
            on_first(lambda: write_report(workdir))
    on_first(lambda: write_report(workdir))
    return workdir / "report.html"


def _run_stage(recipe: Recipe, name: str, experiment: Experiment, mesh: Any, workdir: Path) -> None:
    folder = workdir / name

    def stage_folder(other: str) -> Path:
        return workdir / other if other in recipe.stages else Path(other)

    began = time.monotonic()
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
        task = build_task(experiment, setup)
        check_same("the data", task.data_fingerprint)
        checkpoints = Checkpoints(folder / "checkpoints", keep=experiment.keep)
        log = MetricsLog(folder) if is_first() else NoLog()
        try:
            state, about = _restored(task, experiment, checkpoints, log)
            state, about = _train(name, experiment, task, state, about, checkpoints, log, began)
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
        finally:
            log.close()
            checkpoints.close()


def _restored(
    task: Task, experiment: Experiment, checkpoints: Checkpoints, log: MetricsLog | NoLog
) -> tuple[TrainState, dict[str, Any]]:
    """This run's newest checkpoint, else another run's weights, else fresh ones; and what was counted so far."""
    state = jax.jit(task.init)(jax.random.key(experiment.seed))
    restored = checkpoints.restore(abstract(state))
    if restored is None:
        log.resume(0)
        return task.start(state), {"seconds": 0.0, "tokens": 0, "data_fingerprint": task.data_fingerprint}
    state, about = restored
    if about["data_fingerprint"] != task.data_fingerprint:
        raise ValueError(
            f"the data changed since the checkpoint in {checkpoints.folder} (fingerprint {about['data_fingerprint']} "
            f"then, {task.data_fingerprint} now): restore the data, or choose another --workdir"
        )
    log.resume(int(state.step))
    return state, about


def _train(
    name: str,
    experiment: Experiment,
    task: Task,
    state: TrainState,
    about: dict[str, Any],
    checkpoints: Checkpoints,
    log: MetricsLog | NoLog,
    began: float,
) -> tuple[TrainState, dict[str, Any]]:
    step = jax.jit(task.step, donate_argnums=0)
    collect = None if task.collect is None else jax.jit(task.collect)
    rate = learning_rate(experiment.optimizer, experiment.steps)
    updates = task.updates_per_batch
    save_every = math.ceil(experiment.save_every / updates) * updates
    mesh = jax.sharding.get_mesh()
    meter = Meter(task.flops_per_token, peak_flops([device.device_kind for device in mesh.devices.flat]))
    profile = StepProfile(experiment.profile if is_first() else None, checkpoints.folder.parent / "profile")
    done, batch, pending = int(state.step), None, None
    seconds_before, tokens = about["seconds"], about["tokens"]

    def noted() -> dict[str, Any]:
        return about | {"seconds": seconds_before + time.monotonic() - began, "tokens": tokens}

    with Progress(name, experiment.steps, start=done) as progress:

        def flush() -> None:
            """Log the step before the newest, whose figures are on the host without waiting for the device."""
            nonlocal tokens, pending
            if pending is None:
                return
            number, figures = pending[0], {key: np.asarray(value) for key, value in pending[1].items()}
            count = int(figures[task.tokens])
            tokens += count
            meter.step(count)
            speed = meter.read() if number % 10 == 0 else {}
            log.write(number, figures | {"optim/lr": float(np.asarray(rate(number - 1)))} | speed)
            progress.update(
                number,
                loss=float(figures[task.loss]),
                name="score" if task.loss.endswith("score") else "loss",
                tokens_per_second=speed.get("perf/tokens_per_second"),
            )
            pending = None

        while done < experiment.steps:
            profile.begin(done + 1)
            if done % updates == 0:
                with meter.waiting():
                    batch = put(task.data(done // updates), mesh)
                if collect is not None:
                    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), done // updates)
                    if task.answered is not None:
                        batch = task.answered(state, batch, key, done // updates)
                    batch = collect(state, task.frozen_models, batch, key)
            state, metrics = step(state, batch)
            done += 1
            profile.end(done, metrics)
            flush()
            pending = (done, metrics)
            last = done == experiment.steps  # its checkpoint is written below, with what `finish` adds
            evaluate = experiment.evaluate_every is not None and (last or done % experiment.evaluate_every == 0)
            save = done % save_every == 0 and not last
            if evaluate or save:
                flush()
                if evaluate:
                    log.write(done, task.evaluate(state))
                if save:
                    checkpoints.save(state, done, noted())
                meter.restart()
        flush()
        profile.close()
    with status(f"examining {name}"):
        state, evaluation = task.finish(state)
    checkpoints.save(state, done, noted())
    checkpoints.wait()
    return state, noted() | {"evaluation": evaluation}


def environment() -> dict[str, str]:
    """What the report says of where a run ran."""
    import platform

    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
