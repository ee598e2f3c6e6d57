"""A word that no setting knows is refused with those it knows, also in an experiment that is written in Python."""

from dataclasses import dataclass, replace
from typing import Literal

import pytest

from gptjax.choices import check_choices
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.tasks.dpo import DpoTask
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.mlm import MlmTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.rejection import RejectionTask
from gptjax.run.tasks.reward import RewardTask
from gptjax.run.tasks.sft import SftTask
from gptjax.train.grpo import GrpoConfig, GrpoLoss, RlooLoss
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.reward import RewardConfig

MODEL = ModelConfig(vocab_size=4, layers=1, width=4, heads=1, max_length=4)


@dataclass
class Words:
    one: Literal["a", "b"] = "a"
    number: Literal[0, 1] = 1
    maybe: Literal["x"] | None = None
    free: str | None = "anything"


@pytest.mark.parametrize("value", ["x", None])
def test_words_that_are_known_pass(value):
    check_choices(Words(one="b", number=0, maybe=value), "words")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"one": "c"}, "words.one: choose one of a, b, got 'c'"),
        ({"number": 2}, "words.number: choose one of 0, 1, got 2"),
        ({"maybe": "y"}, "words.maybe: choose one of x, None, got 'y'"),
        ({"one": None}, "words.one: choose one of a, b, got None"),
    ],
)
def test_others_are_named_with_the_choices(changes, message):
    with pytest.raises(ValueError, match=message):
        check_choices(Words(**changes), "words")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(MODEL, matmuls="int4"), "model.matmuls: choose one of full, int8, fp8, got 'int4'"),
        (lambda: replace(MODEL, norm="batch"), "model.norm: choose one of rms, layer, got 'batch'"),
        (lambda: OptimizerConfig(peak_lr=1.0, name="sgd"), "optimizer.name: choose one of adamw, muon, rmsprop"),
        (lambda: PpoConfig(whiten_rewards="all"), "ppo.whiten_rewards: choose one of minibatch, rollout, None"),
        (lambda: GrpoConfig(truncated="keep"), "grpo.truncated: choose one of penalise, mask, got 'keep'"),
        (lambda: GrpoLoss(ddof=2), "grpo.loss.ddof: choose one of 0, 1, got 2"),
        (lambda: RlooLoss(surrogate="none"), "grpo.loss.surrogate: choose one of clip, reinforce, got 'none'"),
        (lambda: RewardConfig(objective="pairs"), "reward.objective: choose one of ranking, choice, rating"),
        (
            lambda: Experiment(
                task=LmTask(long="wrap"), model=MODEL, optimizer=OptimizerConfig(peak_lr=1.0), steps=1, batch_size=1
            ),
            "task.long: choose one of split, truncate, drop, got 'wrap'",
        ),
        (lambda: GrpoConfig(loss="rloo"), "grpo.loss: expected GrpoLoss or RlooLoss, got 'rloo'"),
        (
            lambda: Experiment(
                task=LmTask(), model="gpt2", optimizer=OptimizerConfig(peak_lr=1.0), steps=1, batch_size=1
            ),
            "model: expected ModelConfig, got 'gpt2'",
        ),
        (
            lambda: Experiment(
                task=PpoTask(value_optimizer=1e-3),
                model=MODEL,
                optimizer=OptimizerConfig(peak_lr=1.0),
                steps=1,
                batch_size=1,
            ),
            "task.value_optimizer: expected OptimizerConfig or None, got 0.001",
        ),
    ],
)
def test_every_kind_of_setting_is_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        # each of these would train on: a rate of 1 is an average that never ends, and divides by 1 - 1
        (lambda: OptimizerConfig(peak_lr=1.0, b1=1.0), r"optimizer.b1 must lie in \[0, 1\), got 1.0"),
        (lambda: replace(MODEL, dropout=1.0), r"model.dropout must lie in \[0, 1\), got 1.0"),
        (lambda: LmTask(loss_chunks=0), "task.loss_chunks must be at least 1, got 0"),
        (lambda: LmTask(z_loss=-1.0), "task.z_loss must not be negative, got -1.0"),
        (lambda: MlmTask(loss_chunks=0), "task.loss_chunks must be at least 1, got 0"),
        (lambda: SftTask(heldout_prompts=0), "task.heldout_prompts must be at least 1, got 0"),
        (lambda: RewardTask(train_prompts=0), "task.train_prompts must be at least 1, got 0"),
        (lambda: RejectionTask(row_tokens=0), "task.row_tokens must be at least 1, got 0"),
        (lambda: DpoTask(answer_tokens=0), "task.answer_tokens must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_their_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
