"""Experiment and Recipe: the frozen root configs."""

from dataclasses import dataclass, field
from types import ModuleType

from jax.sharding import Mesh

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.faults import FaultsConfig
from gptjax.run.mesh import MeshConfig, batch_rows
from gptjax.run.task import Setup, Task
from gptjax.run.tasks import dpo, grpo, lm, mlm, ppo, rejection, reward, sft
from gptjax.run.tasks.dpo import DpoTask
from gptjax.run.tasks.grpo import GrpoTask
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.mlm import MlmTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.rejection import RejectionTask
from gptjax.run.tasks.reward import RewardTask
from gptjax.run.tasks.sft import SftTask

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
    seed: of everything random.  evaluate_every: steps between held-out evaluations (None: at the end only).
    save_every: steps between checkpoints (PPO, GRPO: rounded up to whole rollouts).  keep: newest checkpoints kept.
    keep_best: kept besides, those whose mean loss (or score) since the checkpoint before was the best.  keep_every:
    checkpoints of steps that are multiples of it are kept for ever (None: none).
    faults: what happens when something goes wrong.
    """

    task: LmTask | MlmTask | SftTask | RewardTask | PpoTask | DpoTask | GrpoTask | RejectionTask
    model: ModelConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    steps: int
    batch_size: int
    seed: int = 0
    evaluate_every: int | None = None
    save_every: int = 100
    keep: int = 2
    keep_best: int = 0
    keep_every: int | None = None
    faults: FaultsConfig = field(default_factory=FaultsConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("evaluate_every", "keep_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.keep_best < 0:
            raise ValueError(f"keep_best must not be negative, got {self.keep_best}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


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


def build_task(experiment: Experiment, setup: Setup) -> Task:
    """The experiment's task, with its data at hand."""
    return _BUILDERS[type(experiment.task)].build(experiment.task, setup)


def check_layout(experiment: Experiment, mesh: Mesh) -> None:
    """Raise ValueError, naming both numbers, if a mesh axis does not divide what it spreads."""
    sizes, task = experiment.model.sizes, experiment.task
    rows = batch_rows(mesh)
    spread = [
        ("batch_size", experiment.batch_size, "data x fsdp x expert", rows),
        ("model.width", sizes["D"], "fsdp", mesh.shape["fsdp"]),
        ("model.heads", sizes["N"], "tensor", mesh.shape["tensor"]),
        ("model.kv_heads", sizes["K"], "tensor", mesh.shape["tensor"]),
        ("model.hidden", sizes["F"], "tensor", mesh.shape["tensor"]),
        ("model.vocab_size", sizes["V"], "tensor", mesh.shape["tensor"]),
    ]
    context = mesh.shape["context"]
    for name in ("row_tokens", "prompt_tokens", "answer_tokens"):
        if (size := getattr(task, name, None)) is not None:
            spread.append((f"task.{name}", size, "context", context))
    for name in ("ppo", "grpo"):
        if config := getattr(task, name, None):
            spread.append((f"task.{name}.response_tokens", config.response_tokens, "context", context))
            minibatch = config.prompts // config.minibatches
            spread.append((f"task.{name}.prompts / task.{name}.minibatches", minibatch, "data x fsdp x expert", rows))
    for name, size, axis, pieces in spread:
        if size % pieces:
            raise ValueError(f"{name} {size} is not a multiple of the mesh's {axis} {pieces}: change one of them")
