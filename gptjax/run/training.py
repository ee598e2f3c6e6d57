"""The loop of a stage: restore, step, evaluate, save, and what happens when a signal comes or the numbers go wrong."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax.optim.optimizer import learning_rate
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.chips import peak_flops
from gptjax.run.exits import NumericalFaultError, Preempted
from gptjax.run.experiment import Experiment
from gptjax.run.faults import LossWatch, repeated
from gptjax.run.goodput import Goodput
from gptjax.run.hosts import first_says, is_first, on_first
from gptjax.run.mesh import put
from gptjax.run.meter import Meter
from gptjax.run.metrics import MetricsLog, NoLog
from gptjax.run.profile import StepProfile
from gptjax.run.progress import Progress, note, status
from gptjax.run.resume import logged_rows, restored
from gptjax.run.stop import Stop
from gptjax.run.task import Task
from gptjax.run.watchdog import Watchdog
from gptjax.tree import abstract
from gptjax.types import TrainState


class Training:
    """A stage under way: its state after a number of updates, and all that looks after it."""

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        task: Task,
        checkpoints: Checkpoints,
        log: MetricsLog | NoLog,
        stop: Stop,
        goodput: Goodput,
        trunk: Path | None = None,
    ):
        """From the newest checkpoint on, else from the last state of the stage in `trunk`, else from the beginning.

        Raises:
            ValueError: the data changed, or the checkpoints cannot be read.
        """
        with goodput("restore"):
            self._state, self._about = restored(task, experiment, checkpoints, log, trunk)
        goodput.add(self._about.pop("seconds_by_use", {}))
        self._name, self._done = name, int(self._state.step)
        self._experiment, self._task = experiment, task
        self._checkpoints, self._log, self._stop, self._goodput = checkpoints, log, stop, goodput
        faults, updates = experiment.faults, task.updates_per_batch
        self._step = jax.jit(task.step, donate_argnums=0)
        self._step_again = jax.jit(task.step)  # keeps its arguments, so that it can be repeated
        self._collect = None if task.collect is None else jax.jit(task.collect)
        self._rate = learning_rate(experiment.optimizer, experiment.steps)
        self._save_every = math.ceil(experiment.save_every / updates) * updates
        self._mesh = jax.sharding.get_mesh()
        kinds = [device.device_kind for device in self._mesh.devices.flat]
        self._meter = Meter(task.flops_per_token, peak_flops(kinds))
        self._profile = StepProfile(experiment.profile if is_first() else None, checkpoints.folder.parent / "profile")
        self._offset = int(self._state.extra["data_offset"])
        self._batch: Any = None
        self._pending: tuple[int, Any] | None = None
        self._called: set[Any] = set()
        self._losses: list[float] = []
        is_score = task.loss.endswith("score")
        self._sign = 1.0 if is_score else -1.0
        self._spike = None if is_score else faults.spike_deviations
        self._watch = self._watched()
        self._dog = Watchdog(faults.stall_seconds)
        self._progress = Progress(name, experiment.steps, start=self._done)

    def run(self) -> tuple[TrainState, dict[str, Any]]:
        """Train to the end.

        Returns:
            The final state, which is saved, and what the stage's result says of the training.

        Raises:
            ValueError: the checkpoints cannot be written.
            NumericalFaultError: the numbers go wrong again and again.
            Preempted: a signal asked to stop; what was done is saved.
        """
        try:
            self._make_updates()
            with status(f"examining {self._name}"), self._goodput("evaluate"), self._stop.interruptible():
                self._state, evaluation = self._task.finish(self._state)
        except Preempted as error:
            self._save(now=True)
            raise Preempted(f"{error}: step {self._done} of stage {self._name} is saved") from None
        self._save(now=True)
        return self._state, self._noted() | {"evaluation": evaluation}

    def _make_updates(self) -> None:
        with self._progress, self._goodput("step"):
            try:
                if self._is_due(self._experiment.evaluate_every) and not first_says(self._is_evaluated()):
                    self._evaluate()  # a signal broke it off
                while self._done < self._experiment.steps or self._pending is not None:
                    self._go_on()
            finally:
                self._dog.rest()
                self._profile.close()

    def _go_on(self) -> None:
        """One update, and what is due after it; or, after the last one, its figures, which may lead back."""
        if self._done == self._experiment.steps:
            self._flush()
            return
        number, fresh = self._done + 1, self._done % self._task.updates_per_batch == 0
        if fresh and self._stop.asked(self._done):
            raise Preempted(self._stop.reason)
        self._profile.begin(number)
        if fresh:
            self._next_batch()
        with self._goodput("lost" if number <= self._about["reached"] else "step"):
            self._update(number)
        if self._done == number:  # else the step before was one too many bad ones, and the run went back
            self._evaluate_and_save(number)

    def _noted(self) -> dict[str, Any]:
        """What is kept with a checkpoint, besides the state."""
        uses = self._goodput.read()
        return self._about | {"seconds": sum(uses.values()), "seconds_by_use": uses}

    def _save(self, *, now: bool = False) -> None:
        """Save the state: in the background, or now."""
        self._flush()
        score = self._sign * float(np.mean(self._losses)) if self._losses else None
        save = self._checkpoints.save_now if now else self._checkpoints.save
        with self._goodput("save"):
            save(self._state, self._done, self._noted(), score=score)
        self._losses = []

    def _next_batch(self) -> None:
        position = self._done // self._task.updates_per_batch
        with self._goodput("data"), self._stop.interruptible():
            batch = put(self._task.data(position + self._offset), self._mesh)
        if self._collect is not None:
            key = jax.random.fold_in(jax.random.wrap_key_data(self._state.key), position)
            with self._goodput("rollout"):
                if self._task.answered is not None:
                    self._dog.rest()  # a program takes as long as it takes
                    batch = self._task.answered(self._state, batch, key, position + self._offset)
                batch = self._call(self._collect, self._state, self._task.frozen_models, batch, key)
            self._stop.check()
        self._batch = batch

    def _update(self, number: int) -> None:
        every = self._experiment.faults.replay_every
        if every is not None and number % every == 0:
            step = partial(self._call, self._step_again)
            self._state, metrics = repeated(step, self._state, self._batch, number)
        else:
            self._state, metrics = self._call(self._step, self._state, self._batch)
        self._done = number
        self._profile.end(number, metrics)
        self._flush()
        if self._done == number:
            self._pending = (number, metrics)

    def _call(self, function: Any, *arguments: Any) -> Any:
        """A first call compiles, which takes as long as it takes."""
        if function in self._called:
            return function(*arguments)
        self._dog.rest()
        with self._goodput("compile"):
            found = function(*arguments)
        self._called.add(function)
        self._meter.restart()
        return found

    def _flush(self) -> None:
        """Log the step before the newest, whose figures are on the host without waiting for the device."""
        if self._pending is None:
            return
        number, metrics = self._pending
        self._pending = None
        figures = {key: np.asarray(value) for key, value in metrics.items()}
        self._dog.heard()
        count, loss = int(figures[self._task.tokens]), float(figures[self._task.loss])
        self._about["tokens"] += count
        self._losses.append(loss)
        self._meter.step(count)
        speed = self._meter.read() | self._uses() if number % 10 == 0 else {}
        self._log.write(number, figures | {"optim/lr": float(np.asarray(self._rate(number - 1)))} | speed)
        self._progress.update(
            number,
            loss=loss,
            name="score" if self._sign > 0 else "loss",
            tokens_per_second=speed.get("perf/tokens_per_second"),
        )
        first_bad = self._watch.see(number, loss, skipped=bool(figures["optim/updates_skipped"]))
        if first_bad is not None:
            self._go_back(first_bad, number)

    def _uses(self) -> dict[str, float]:
        return {f"perf/{use}_seconds": seconds for use, seconds in self._goodput.read().items()}

    def _is_due(self, every: int | None) -> bool:
        last = self._done == self._experiment.steps
        return every is not None and self._done > 0 and (last or self._done % every == 0)

    def _is_evaluated(self) -> bool:
        rows = [row for row in logged_rows(self._checkpoints) if row["step"] == self._done]
        return any(self._task.loss not in row for row in rows)

    def _watched(self) -> LossWatch:
        """A watch that has seen the steps that led to this state, be it after a restart or after going back."""
        watch = LossWatch(self._experiment.faults.bad_steps, self._spike)
        for row in logged_rows(self._checkpoints):
            if row["step"] <= self._done and self._task.loss in row:
                watch.see(row["step"], row[self._task.loss], skipped=bool(row["optim/updates_skipped"]))
        return watch

    def _evaluate_and_save(self, number: int) -> None:
        evaluate = self._is_due(self._experiment.evaluate_every)
        # the last checkpoint is written after `finish`, with what that adds
        save = self._done % self._save_every == 0 and self._done < self._experiment.steps
        if not evaluate and not save:
            return
        self._flush()
        if self._done != number:
            return
        if evaluate:
            self._evaluate()
        if save:
            self._save()
        self._meter.restart()

    def _evaluate(self) -> None:
        self._dog.rest()
        with self._goodput("evaluate"):
            if self._done % self._task.updates_per_batch == 0:
                with self._stop.interruptible():
                    figures = self._task.evaluate(self._state)
            else:  # between two updates on one rollout, which is not saved
                figures = self._task.evaluate(self._state)
        self._log.write(self._done, figures)

    def _go_back(self, first_bad: int, last_bad: int) -> None:
        """To the newest checkpoint before the bad steps; the batches up to the last of them are passed over."""
        updates, faults = self._task.updates_per_batch, self._experiment.faults
        what = f"updates {first_bad} to {last_bad} were not finite, or had spikes for a loss"
        if self._about["rollbacks"] >= faults.rollbacks:
            raise NumericalFaultError(
                f"{what}, after {self._about['rollbacks']} rollbacks: change what makes them go wrong, such as "
                "optimizer.peak_lr, and start a new run; the checkpoints before them are good"
            )
        self._dog.rest()
        shapes = abstract(self._state)
        del self._state  # there may be no room for two
        with self._goodput("restore"):
            found = self._checkpoints.restore(shapes, before=first_bad)
        if found is None:
            raise NumericalFaultError(f"{what}, and there is no checkpoint before them to go back to")
        state, about = found
        step = int(state.step)
        self._offset += (last_bad - 1) // updates + 1 - step // updates
        offset = jax.device_put(np.int32(self._offset), state.extra["data_offset"].sharding)
        self._state = dataclasses.replace(state, extra=state.extra | {"data_offset": offset})
        self._about["tokens"] = about["tokens"]
        self._about["rollbacks"] += 1
        self._about["reached"] = max(self._about["reached"], self._done)
        self._done, self._pending, self._losses = step, None, []
        on_first(lambda: self._log.resume(step))
        self._watch = self._watched()
        self._meter.restart()
        note(f"{what}: back to step {step}, passing over the batches up to those of step {last_bad}")
