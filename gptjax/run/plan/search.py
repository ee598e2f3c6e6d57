"""What to change when a plan does not fit, and a ranking of layouts that do."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptjax.run.experiment import Experiment
from gptjax.run.mesh import count_slices
from gptjax.run.plan.compile import ProgramPlan, plan_experiment
from gptjax.run.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A change of an experiment, as options of the command line, and what it came to."""

    options: str
    programs: list[ProgramPlan]

    @property
    def missing(self) -> int:
        """Bytes by which the largest program exceeds the device."""
        return max(program.memory.missing for program in self.programs)

    @property
    def peak(self) -> int:
        """Bytes on a device of the largest program."""
        return max(program.memory.peak for program in self.programs)

    @property
    def tokens_per_second(self) -> float | None:
        """At best, of the last program; None for unknown devices."""
        last = self.programs[-1]
        return None if last.roofline is None else last.tokens / last.roofline.fastest


def smallest_change(experiment: Experiment, devices: list[Any]) -> Choice | None:
    """The first of the changes that makes the experiment fit, from those that cost least to those that cost most.

    Each is tried on top of those before it: more recomputation, a spread residual stream, logits in pieces, block
    inputs and then the optimizer's averages in the host's memory, less batch.
    """
    changes = list(_remedies(experiment))
    with Progress("searching", len(changes)) as progress:
        for number, (options, changed) in enumerate(changes, 1):
            try:
                choice = Choice(options=options, programs=plan_experiment(changed, devices))
            except ValueError:
                continue  # this change does not go with the mesh
            finally:
                progress.update(number)
            if choice.missing == 0:
                return choice
    return None


def _remedies(experiment: Experiment) -> Iterator[tuple[str, Experiment]]:
    options: dict[str, str] = {}  # the last value of each option counts

    def with_option(name: str, value: str = "") -> str:
        options[name] = value
        return " ".join(f"{name} {value}".rstrip() for name, value in options.items())

    offloaded = experiment.model.remat == "offload"
    if experiment.model.remat != "full" and not offloaded:
        experiment = _with_model(experiment, remat="full")
        yield with_option("--model.remat", "full"), experiment
    if experiment.mesh.tensor > 1 and not experiment.model.spread_norms:
        experiment = _with_model(experiment, spread_norms=True)
        yield with_option("--model.spread-norms"), experiment
    if getattr(experiment.task, "loss_chunks", 8) < 8:
        experiment = dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, loss_chunks=8))
        yield with_option("--task.loss-chunks", "8"), experiment
    if not offloaded:
        experiment = _with_model(experiment, remat="offload")
        yield with_option("--model.remat", "offload"), experiment
    if not experiment.optimizer.offload:
        experiment = dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, offload=True))
        yield with_option("--optimizer.offload"), experiment
    if _batch_is_free(experiment):
        for divisor in (2, 4):
            if experiment.batch_size % divisor == 0:
                rows = experiment.batch_size // divisor
                yield with_option("--batch-size", str(rows)), dataclasses.replace(experiment, batch_size=rows)


def layouts(experiment: Experiment, devices: list[Any]) -> Iterator[tuple[str, Experiment]]:
    """Meshes of fsdp x tensor with two rematerialisation policies each, as options and experiments."""
    mesh = experiment.mesh
    data = mesh.data or count_slices(devices)  # only `data` may cross them
    rest = mesh.expert * mesh.context * data
    for tensor in (1, 2, 4, 8):
        if len(devices) % (tensor * rest):
            continue
        changed = dataclasses.replace(mesh, data=data, fsdp=len(devices) // (tensor * rest), tensor=tensor)
        for remat in ("full", "attention"):
            model = dataclasses.replace(experiment.model, remat=remat, spread_norms=tensor > 1)
            options = f"--mesh.fsdp {changed.fsdp} --mesh.tensor {tensor} --model.remat {remat}"
            options += " --model.spread-norms" if tensor > 1 else ""
            yield options, dataclasses.replace(experiment, mesh=changed, model=model)


def ranked(experiment: Experiment, devices: list[Any]) -> list[Choice]:
    """The layouts that compile, those that fit first, fastest first (on unknown devices: smallest first).

    Where a layout fits, twice and four times the batch are tried too, as long as they do.
    """
    tried = list(layouts(experiment, devices))
    found = []
    with Progress("searching", len(tried)) as progress:
        for number, (options, changed) in enumerate(tried, 1):
            with contextlib.suppress(ValueError):  # sizes that this mesh does not divide
                found.extend(_with_batches(options, changed, devices))
            progress.update(number)
    return sorted(found, key=lambda choice: (choice.missing > 0, -(choice.tokens_per_second or 0.0), choice.peak))


def _with_batches(options: str, experiment: Experiment, devices: list[Any]) -> Iterator[Choice]:
    for factor in (1, 2, 4):
        changed = dataclasses.replace(experiment, batch_size=experiment.batch_size * factor)
        named = options if factor == 1 else f"{options} --batch-size {changed.batch_size}"
        choice = Choice(options=named, programs=plan_experiment(changed, devices))
        yield choice
        is_known = choice.tokens_per_second is not None
        if choice.missing or not is_known or not _batch_is_free(experiment):
            return


def _batch_is_free(experiment: Experiment) -> bool:
    """Whether it can be changed alone; with a rollout it must match other settings."""
    return not any(hasattr(experiment.task, name) for name in ("ppo", "grpo"))


def _with_model(experiment: Experiment, **changes: Any) -> Experiment:
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changes))
