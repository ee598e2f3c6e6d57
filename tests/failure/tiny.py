"""A recipe so small that a whole run takes seconds; its data lies beside it, made by the test."""

import os
from pathlib import Path
from typing import Any

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.reward import RewardTask
from gptjax.run.tasks.rows import RowsConfig
from gptjax.run.tasks.sft import SftTask
from gptjax.train.ppo_config import PpoConfig

DATA = Path(os.environ["TINY_DATA"])
MODEL = ModelConfig(vocab_size=320, layers=2, width=32, heads=4, kv_heads=2, hidden=64, max_length=64, dropout=0.1)
ADAMW = OptimizerConfig(peak_lr=3e-3, warmup_steps=4)


def experiment(task, steps: int, save_every: int) -> Experiment:
    return Experiment(
        task=task, model=MODEL, optimizer=ADAMW, steps=steps, batch_size=8, save_every=save_every, evaluate_every=10
    )


def recipe() -> Recipe:
    ppo = PpoConfig(minibatches=2, epochs=2, response_tokens=8, kl_target=0.1, ptx_coefficient=0.1)
    text: dict[str, Any] = {"corpus": DATA / "corpus.jsonl", "heldout_fraction": 0.2, "row_tokens": 32}
    sft = SftTask(
        conversations=DATA / "chats.jsonl", heldout_fraction=0.2, row_tokens=48, prompt_tokens=32, answer_tokens=8
    )
    reward = RewardTask(comparisons=DATA / "ranked.jsonl", prompt_tokens=32, answer_tokens=24)
    policy = PpoTask(
        prompts=DATA / "prompts.jsonl", prompt_tokens=32, ppo=ppo, pretrain=RowsConfig(**text), heldout_prompts=4,
        best_of=2, heldout_samples=2,
    )  # fmt: skip
    return Recipe(
        name="tiny",
        stages={
            "lm": experiment(LmTask(**text), 24, 6),
            "sft": experiment(sft, 18, 6),
            "reward": experiment(reward, 12, 4),
            "ppo": experiment(policy, 24, 8),
        },
    )
