"""From a bare machine to a chat: pre-training, supervised fine-tuning, a reward model and PPO on two CPU cores.

    gptjax run experiments/chatgpt_mini.py

The corpus is the documentation of the Python that runs this; the questions are about its library; the labeler is a
program (see gptjax/data/labeler.py). Expected figures: docs/log.md.
"""

from gptjax.data.labeler import SimulatedLabeler
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.reward import RewardTask
from gptjax.run.tasks.sft import SftTask
from gptjax.train.ppo_config import PpoConfig

MODEL = ModelConfig(vocab_size=4096, layers=4, width=128, heads=4, max_length=256, activation="relu2", unroll=4)
LABELER = SimulatedLabeler(temperature=0.7)
PROMPT_TOKENS, ANSWER_TOKENS = 48, 40


def recipe() -> Recipe:
    return Recipe(name="chatgpt_mini", stages={"lm": lm(), "sft": sft(), "reward": reward(), "ppo": ppo()})


def lm() -> Experiment:
    return Experiment(
        task=LmTask(include_source=False, row_tokens=128, loss_chunks=4),
        model=MODEL,
        optimizer=OptimizerConfig(name="muon", peak_lr=1.2e-2, warmup_steps=30, final_fraction=0.05, weight_decay=0.1),
        steps=512,
        batch_size=16,
        evaluate_every=128,
        save_every=128,
    )


def sft() -> Experiment:
    return Experiment(
        task=SftTask(row_tokens=128, loss_chunks=4, prompt_tokens=PROMPT_TOKENS, answer_tokens=ANSWER_TOKENS),
        model=MODEL,
        optimizer=OptimizerConfig(name="muon", peak_lr=5e-3, warmup_steps=10, weight_decay=0.1),
        steps=120,
        batch_size=16,
        evaluate_every=40,
        save_every=40,
    )


def reward() -> Experiment:
    return Experiment(
        task=RewardTask(train_prompts=3072, prompt_tokens=PROMPT_TOKENS, answer_tokens=ANSWER_TOKENS, labeler=LABELER),
        model=MODEL,
        optimizer=OptimizerConfig(name="muon", peak_lr=7e-3, warmup_steps=10, weight_decay=0.1),
        steps=176,
        batch_size=16,
        evaluate_every=44,
        save_every=44,
    )


def ppo() -> Experiment:
    settings = PpoConfig(
        minibatches=4,
        epochs=1,
        response_tokens=ANSWER_TOKENS,
        kl_coefficient=0.3,
        kl_target=4.0,
        kl_horizon=400.0,
    )
    return Experiment(
        task=PpoTask(ppo=settings, prompt_tokens=PROMPT_TOKENS, labeler=LABELER),
        model=MODEL,
        optimizer=OptimizerConfig(peak_lr=3e-4, schedule="constant", warmup_steps=16, start_fraction=0.1),
        steps=128,
        batch_size=64,
        evaluate_every=32,
        save_every=32,
    )
