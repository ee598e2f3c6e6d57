"""What an experiment refuses to lay out on a mesh, and how it says so."""

import re
from dataclasses import replace

import pytest
from jax.sharding import AbstractMesh, AxisType

from gptjax import dims
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment, check_layout
from gptjax.run.tasks.grpo import GrpoTask
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.reward import RewardTask
from gptjax.run.tasks.rows import RowsConfig
from gptjax.run.tasks.sft import SftTask
from gptjax.train.grpo import GrpoConfig
from gptjax.train.ppo_config import PpoConfig

MODEL = ModelConfig(vocab_size=64, layers=1, width=16, heads=12, head_width=2, kv_heads=2, hidden=48)
LM = Experiment(task=LmTask(row_tokens=32), model=MODEL, optimizer=OptimizerConfig(peak_lr=1.0), steps=1, batch_size=24)
PPO = PpoTask(ppo=PpoConfig(minibatches=3, response_tokens=8), prompt_tokens=8)
GRPO = GrpoTask(grpo=GrpoConfig(minibatches=3, group_size=2, response_tokens=8), prompt_tokens=8)


def laid_out(experiment, **axes):
    sizes = tuple(axes.get(axis, 1) for axis in dims.MESH_AXES)
    check_layout(experiment, AbstractMesh(sizes, dims.MESH_AXES, axis_types=(AxisType.Explicit,) * 5))


def test_key_value_heads_may_be_fewer_than_the_tensor_axis():
    laid_out(LM, tensor=2)
    laid_out(LM, tensor=4)  # 2 heads, each on 2 devices


@pytest.mark.parametrize(
    ("experiment", "axes", "message"),
    [
        (
            replace(LM, model=replace(MODEL, kv_heads=3)),
            {"tensor": 4},
            "model.kv_heads 3 is not a multiple of the mesh's tensor 4",
        ),
        (
            replace(LM, model=replace(MODEL, experts=6)),
            {"expert": 4},
            "model.experts 6 is not a multiple of the mesh's expert 4",
        ),
        (replace(LM, microbatches=5), {}, "batch_size 24 is not a multiple of microbatches 5"),
        (
            replace(LM, microbatches=4),
            {"data": 2, "fsdp": 2},
            "batch_size / microbatches 6 is not a multiple of the mesh's data x fsdp x expert 4",
        ),
        (
            replace(LM, task=PPO, steps=3, batch_size=22),
            {},
            "batch_size 22 is not a multiple of task.ppo.minibatches 3: change one of them",
        ),
        (
            replace(LM, task=GRPO, steps=4),
            {},
            "steps 4 is not a multiple of the 3 updates made on each rollout: change steps, task.grpo.minibatches or",
        ),
        (
            replace(LM, task=PPO, steps=3, microbatches=3),
            {},
            "batch_size / task.ppo.minibatches 8 is not a multiple of microbatches 3",
        ),
        (
            replace(LM, task=GRPO, steps=3, microbatches=3),
            {},
            "batch_size / task.grpo.minibatches x task.grpo.group_size 16 is not a multiple of microbatches 3",
        ),
    ],
)
def test_what_does_not_divide_is_an_error_with_both_numbers(experiment, axes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        laid_out(experiment, **axes)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (LmTask(row_tokens=64), "task.row_tokens 64 is above model.max_length 48"),
        (SftTask(row_tokens=64), "task.row_tokens 64 is above model.max_length 48"),
        (
            SftTask(row_tokens=48, prompt_tokens=32, answer_tokens=17),
            "task.prompt_tokens 32 + task.answer_tokens 17 are above model.max_length 48",
        ),
        (
            RewardTask(prompt_tokens=40, answer_tokens=16),
            "task.prompt_tokens 40 + task.answer_tokens 16 are above model.max_length 48",
        ),
        (
            replace(PPO, prompt_tokens=41),
            "task.prompt_tokens 41 + task.ppo.response_tokens 8 are above model.max_length 48",
        ),
        (
            replace(GRPO, prompt_tokens=41),
            "task.prompt_tokens 41 + task.grpo.response_tokens 8 are above model.max_length 48",
        ),
        (
            replace(PPO, pretrain=RowsConfig(row_tokens=64)),
            "task.pretrain.row_tokens 64 is above model.max_length 48",
        ),
    ],
)
def test_what_the_model_cannot_read_is_an_error_with_both_numbers(task, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        laid_out(replace(LM, model=replace(MODEL, max_length=48), task=task))


def test_a_row_of_candidates_may_be_longer_than_the_context():
    task = RewardTask(prompt_tokens=32, answer_tokens=16, row_tokens=96)
    laid_out(replace(LM, model=replace(MODEL, max_length=48), task=task))


def test_microbatches_are_cut_from_what_an_update_sees():
    laid_out(replace(LM, microbatches=6), data=4)
    laid_out(replace(LM, task=PPO, steps=3, microbatches=2), data=4)
    laid_out(replace(LM, task=GRPO, steps=3, microbatches=4), data=4)
    with pytest.raises(ValueError, match="microbatches must be at least 1, got 0"):
        replace(LM, microbatches=0)
