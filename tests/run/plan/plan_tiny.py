"""Small experiments to plan on simulated CPU devices."""

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.train.ppo_config import PpoConfig

MODEL = ModelConfig(
    vocab_size=64, layers=3, width=16, heads=2, hidden=32, max_length=32, remat="full", tied=False, norm="rms"
)


def experiment() -> Experiment:
    return Experiment(
        task=LmTask(row_tokens=32, loss_chunks=2),
        model=MODEL,
        optimizer=OptimizerConfig(peak_lr=1e-3),
        mesh=MeshConfig(fsdp=8),
        steps=4,
        batch_size=8,
    )


def ppo() -> Experiment:
    settings = PpoConfig(minibatches=2, response_tokens=8)
    return Experiment(
        task=PpoTask(ppo=settings, prompt_tokens=8),
        model=MODEL,
        optimizer=OptimizerConfig(peak_lr=1e-3),
        mesh=MeshConfig(fsdp=8),
        steps=4,
        batch_size=16,
    )


def recipe() -> Recipe:
    return Recipe(name="tiny", stages={"lm": experiment(), "ppo": ppo()})
