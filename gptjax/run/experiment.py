"""Experiment and Recipe: the frozen root configs."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from jax.sharding import Mesh

from gptjax.choices import check_choices, check_numbers
from gptjax.memory import check_pinned_host
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.criteria import Criterion
from gptjax.run.faults import FaultsConfig
from gptjax.run.mesh import MeshConfig, batch_rows
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks import dpo, grpo, lm, mlm, ppo, rejection, reward, sft
from gptjax.run.tasks.dpo import DpoTask
from gptjax.run.tasks.grpo import GrpoTask
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.mlm import MlmTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.rejection import RejectionTask
from gptjax.run.tasks.reward import RewardTask
from gptjax.run.tasks.sft import SftTask
from gptjax.train.grpo import GrpoConfig
from gptjax.train.offload import parked, parking
from gptjax.train.ppo_config import PpoConfig

_Made = TypeVar("_Made", Task, Outline)

_BUILDERS: dict[type, ModuleType] = {
    LmTask: lm,
    MlmTask: mlm,
    SftTask: sft,
    RewardTask: reward,
    PpoTask: ppo,
    DpoTask: dpo,
    GrpoTask: grpo,
    RejectionTask: rejection,
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run.

    task: objective and data.  model, optimizer, mesh: see their classes.
    steps: updates in all.  batch_size: rows (pre-training, fine-tuning), prompts (reward, PPO, GRPO) or pairs (DPO) of
    a batch.
    microbatches: pieces in which each gradient is computed: memory of one, the same result.
    seed: of everything random.  evaluate_every: steps between held-out evaluations (None: at the end only).
    save_every: steps between checkpoints (PPO, GRPO: rounded up to whole rollouts).  keep: newest checkpoints kept.
    criteria: what the finished stage must show; the report says whether it does.
    profile: first and last of the steps that are traced into the stage's folder `profile` (None: none).
    keep_best: kept besides, those whose mean loss (or score) since the checkpoint before was the best.  keep_every:
    checkpoints of steps that are multiples of it are kept for ever (None: none).
    faults: what happens when something goes wrong.
    branch_from: stage of the recipe, or folder of a trained stage, whose whole state (optimizer, step and place in the
    data too) this run goes on from, on the same data and with the same batches.
    """

    task: LmTask | MlmTask | SftTask | RewardTask | PpoTask | DpoTask | GrpoTask | RejectionTask
    model: ModelConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    steps: int
    batch_size: int
    microbatches: int = 1
    seed: int = 0
    evaluate_every: int | None = None
    save_every: int = 100
    keep: int = 2
    criteria: tuple[Criterion, ...] = ()
    profile: tuple[int, int] | None = None
    keep_best: int = 0
    keep_every: int | None = None
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    branch_from: str | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        check_choices(self.task, "task")
        counts = ("steps", "batch_size", "microbatches", "save_every", "keep", "evaluate_every", "keep_every")
        check_numbers(self, at_least_1=counts, not_negative=("keep_best", "seed"))
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise ValueError(f"profile must be the first and the last step to trace, from 1, got {self.profile}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Experiments that run one after another in one folder; a stage names the stages that it starts from."""

    name: str
    stages: dict[str, Experiment]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"recipe {self.name!r} has no stages")


def task_kind(experiment: Experiment) -> str:
    """lm, mlm, sft, reward, ppo, dpo, grpo or rejection."""
    return _BUILDERS[type(experiment.task)].__name__.rpartition(".")[2]


def setup_of(experiment: Experiment, *, folder: Path, mesh: Mesh, stage_folder: Callable[[str], Path]) -> Setup:
    """What the experiment's task is built from."""
    return Setup(
        model=experiment.model,
        optimizer=experiment.optimizer,
        steps=experiment.steps,
        batch_size=experiment.batch_size,
        microbatches=experiment.microbatches,
        seed=experiment.seed,
        folder=folder,
        mesh=mesh,
        stage_folder=stage_folder,
    )


def build_task(experiment: Experiment, setup: Setup) -> Task:
    """The experiment's task, with its data at hand.

    Raises:
        ValueError: its settings do not go together, its data is not there, or the devices lack what they ask for.
    """
    task = _stepping(experiment, _BUILDERS[type(experiment.task)].build(experiment.task, setup))
    if not experiment.optimizer.offload:
        return task
    check_pinned_host("optimizer.offload", "leave it out")
    start = task.start
    return task if start is None else replace(task, start=lambda key: parked(start(key)))


def outline_task(experiment: Experiment, setup: Setup) -> Outline:
    """What of the task follows from its settings alone."""
    return _stepping(experiment, _BUILDERS[type(experiment.task)].outline(experiment.task, setup))


def _stepping(experiment: Experiment, made: _Made) -> _Made:
    """With the step's microbatches, and the optimizer's state where the experiment wants it."""
    step = partial(made.step, microbatches=experiment.microbatches)
    if not experiment.optimizer.offload:
        return replace(made, step=step)
    return replace(made, step=parking(step), init=lambda key: parked(made.init(key)))


def check_layout(experiment: Experiment, mesh: Mesh) -> None:
    """Raise ValueError, naming both numbers, if a mesh axis does not divide what it spreads, the updates on a rollout
    do not divide its prompts or the steps, or the model's context is shorter than the task's rows, or its prompts with
    their answers.

    Key-value heads may be fewer than `tensor`: then each is held by several devices (gptjax.dims.kv_copies).
    """
    _check_lengths(experiment)
    sizes, task = experiment.model.sizes, experiment.task
    rows = batch_rows(mesh)
    spread = [
        ("batch_size", experiment.batch_size, "data x fsdp x expert", rows),
        ("model.width", sizes["D"], "fsdp x expert", mesh.shape["fsdp"] * mesh.shape["expert"]),
        ("model.heads", sizes["N"], "tensor", mesh.shape["tensor"]),
        ("model.experts", sizes.get("E", 0), "expert", mesh.shape["expert"]),
        ("model.hidden", sizes["F"], "tensor", mesh.shape["tensor"]),
        ("model.vocab_size", sizes["V"], "tensor", mesh.shape["tensor"]),
    ]
    if mesh.shape["tensor"] % sizes["K"]:
        spread.append(("model.kv_heads", sizes["K"], "tensor", mesh.shape["tensor"]))
    context = mesh.shape["context"]
    axes = "context"
    if experiment.model.spread_norms:
        axes, context = "context x tensor", context * mesh.shape["tensor"]
    for name in ("row_tokens", "prompt_tokens", "answer_tokens"):
        if (size := getattr(task, name, None)) is not None:
            spread.append((f"task.{name}", size, axes, context))
    rollout = _rollout(experiment)
    if rollout is not None:
        name, config, minibatch = rollout
        spread.append((f"task.{name}.response_tokens", config.response_tokens, axes, context))
        spread.append((f"batch_size / task.{name}.minibatches", minibatch, "data x fsdp x expert", rows))
    for name, size, axis, pieces in spread:
        if size % pieces:
            raise ValueError(f"{name} {size} is not a multiple of the mesh's {axis} {pieces}: change one of them")
    _check_microbatches(experiment, rollout, rows)


_LENGTHS = (  # settings of tasks; what they add up to must fit in the model's context
    ("row_tokens",),
    ("pretrain.row_tokens",),
    ("prompt_tokens", "answer_tokens"),
    ("prompt_tokens", "ppo.response_tokens"),
    ("prompt_tokens", "grpo.response_tokens"),
)


def _check_lengths(experiment: Experiment) -> None:
    """Raise ValueError if the model cannot read a whole row, or a prompt and its answer."""
    most = experiment.model.max_length
    for names in _LENGTHS:
        if names == ("row_tokens",) and isinstance(experiment.task, RewardTask):
            continue  # several candidates to a row, each with positions from 0
        found = [_setting(experiment.task, name) for name in names]
        if None not in found and sum(found) > most:
            listed = " + ".join(f"task.{name} {size}" for name, size in zip(names, found, strict=True))
            raise ValueError(f"{listed} {'is' if len(names) == 1 else 'are'} above model.max_length {most}")


def _setting(task: Any, name: str) -> Any:
    """Of a task, by its dotted name; None where the task has none."""
    return reduce(lambda value, part: getattr(value, part, None), name.split("."), task)


_Rollout = tuple[str, PpoConfig | GrpoConfig, int]


def _rollout(experiment: Experiment) -> _Rollout | None:
    """(name of the settings, settings, prompts of an update) of a stage that learns from rollouts.

    Raises:
        ValueError: the updates on a rollout do not divide its prompts, or the steps.
    """
    for name in ("ppo", "grpo"):
        if (config := getattr(experiment.task, name, None)) is None:
            continue
        if experiment.batch_size % config.minibatches:
            raise ValueError(
                f"batch_size {experiment.batch_size} is not a multiple of task.{name}.minibatches "
                f"{config.minibatches}: change one of them"
            )
        if experiment.steps % config.updates:
            raise ValueError(
                f"steps {experiment.steps} is not a multiple of the {config.updates} updates made on each rollout: "
                f"change steps, task.{name}.minibatches or task.{name}.epochs"
            )
        return name, config, experiment.batch_size // config.minibatches
    return None


def _check_microbatches(experiment: Experiment, rollout: _Rollout | None, pieces: int) -> None:
    """Raise ValueError if the rows of an update do not make that many microbatches, or these do not fill the mesh."""
    name, size = "batch_size", experiment.batch_size
    if rollout is not None:
        kind, config, size = rollout
        name = f"batch_size / task.{kind}.minibatches"
        if isinstance(config, GrpoConfig):
            name, size = f"{name} x task.{kind}.group_size", size * config.group_size
    if size % experiment.microbatches:
        raise ValueError(
            f"{name} {size} is not a multiple of microbatches {experiment.microbatches}: change one of them"
        )
    if size // experiment.microbatches % pieces:
        raise ValueError(
            f"{name} / microbatches {size // experiment.microbatches} is not a multiple of the mesh's "
            f"data x fsdp x expert {pieces}: change one of them"
        )
