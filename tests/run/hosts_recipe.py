"""A recipe that takes seconds, for tests of several processes; its data lies in the folder that TINY_DATA names."""

import os
from pathlib import Path

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.dpo import DpoTask
from gptjax.run.tasks.grpo import GrpoTask
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.mlm import MlmTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.reward import RewardTask
from gptjax.run.tasks.rows import RowsConfig
from gptjax.run.tasks.sft import SftTask
from gptjax.train.grpo import GrpoConfig
from gptjax.train.ppo_config import PpoConfig

DATA = Path(os.environ["TINY_DATA"])
MODEL = ModelConfig(vocab_size=320, layers=1, width=32, heads=4, hidden=64, max_length=64)
ADAMW = OptimizerConfig(peak_lr=3e-3, warmup_steps=4)
TEXT = {"corpus": DATA / "corpus.jsonl", "heldout_fraction": 0.2, "row_tokens": 32}
CORPUS = LmTask(**TEXT)


def experiment(task, steps: int = 8) -> Experiment:
    return Experiment(
        task=task, model=MODEL, optimizer=ADAMW, mesh=MeshConfig(), steps=steps, batch_size=8, save_every=4
    )


def lm() -> Recipe:
    return Recipe(name="lm", stages={"lm": experiment(CORPUS)})


def recipe() -> Recipe:
    prompts = {"prompts": DATA / "prompts.jsonl", "prompt_tokens": 32, "heldout_prompts": 3, "best_of": 2}
    ppo = PpoConfig(minibatches=1, epochs=2, response_tokens=8, kl_target=0.1, ptx_coefficient=0.1)
    grpo = GrpoConfig(minibatches=1, epochs=2, response_tokens=8)
    sft = SftTask(
        conversations=DATA / "chats.jsonl", heldout_fraction=0.2, row_tokens=48, prompt_tokens=32, answer_tokens=8
    )
    reward = RewardTask(comparisons=DATA / "ranked.jsonl", prompt_tokens=32, answer_tokens=24)
    dpo = DpoTask(comparisons=DATA / "ranked.jsonl", prompt_tokens=32, answer_tokens=24, heldout_prompts=3, best_of=2)
    return Recipe(
        name="all",
        stages={
            "mlm": experiment(MlmTask(corpus=DATA / "corpus.jsonl", heldout_fraction=0.2, row_tokens=32)),
            "lm": experiment(CORPUS),
            "sft": experiment(sft),
            "reward": experiment(reward),
            "dpo": experiment(dpo),
            "ppo": experiment(PpoTask(**prompts, ppo=ppo, pretrain=RowsConfig(**TEXT), heldout_samples=2)),
            "grpo": experiment(GrpoTask(**prompts, grpo=grpo, heldout_samples=2)),
        },
    )
