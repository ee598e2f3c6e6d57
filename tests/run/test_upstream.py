"""What a stage hands on: the policy that its result names, out of a checkpoint that holds more."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.task import Setup
from gptjax.run.tasks.upstream import load_policy, started
from gptjax.train.update import initial_state

SIZES = ModelConfig(vocab_size=8, layers=1, width=4, heads=1, max_length=4)


MODEL = language_model(SIZES)


def saved(folder, mesh, params, extra, result):
    """A stage's folder with one checkpoint and a result."""
    state = initial_state(params, optax.sgd(1.0), jax.random.key(0), **extra)
    state = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(state, 1, {})
    checkpoints.close()
    (folder / "result.json").write_text(json.dumps(result))


def filled(*values):
    """Parameters of the model, all of them one number, for each number."""
    first = jax.jit(MODEL.init)(jax.random.key(0))
    return [jax.tree.map(lambda x, value=value: jnp.full_like(x, value), first) for value in values]


@pytest.mark.parametrize(
    ("result", "wanted"),
    [
        ({"task": "ppo", "evaluation": {"policy_weights": "last"}}, 1.0),
        ({"task": "ppo", "evaluation": {"policy_weights": "average"}}, 2.0),
        ({"task": "ppo", "evaluation": {}}, 1.0),
        ({"task": "sft", "evaluation": {}}, 3.0),
    ],
)
def test_a_stage_hands_on_the_weights_that_its_result_names(result, wanted, tmp_path, one_device):
    # a PPO stage with policies of ones (last) and twos (average); another stage of threes
    ones, twos, threes = filled(1.0, 2.0, 3.0)
    params = threes if result["task"] == "sft" else {"policy": ones, "value": {"head": jnp.zeros(())}}
    extra = {} if result["task"] == "sft" else {"average": twos, "kl_coefficient": jnp.zeros(())}
    saved(tmp_path, one_device, params, extra, result)
    setup = Setup(
        model=SIZES, optimizer=OptimizerConfig(peak_lr=1.0), steps=1, batch_size=1, seed=0, folder=tmp_path,
        mesh=one_device, stage_folder=Path,
    )  # fmt: skip
    tx = optax.sgd(1.0)
    begun = started(MODEL, tx, setup, str(tmp_path))(jax.random.key(0))
    for leaf in jax.tree.leaves((load_policy(MODEL, tmp_path, one_device), begun.params)):
        np.testing.assert_array_equal(leaf, wanted)


def test_weights_that_a_checkpoint_lacks_are_named(tmp_path, one_device):
    result = {"task": "ppo", "evaluation": {"policy_weights": "average"}}
    saved(tmp_path, one_device, {"policy": filled(1.0)[0]}, {"kl_coefficient": jnp.zeros(())}, result)
    with pytest.raises(ValueError, match=r"has no model\.extra\.average\.blocks"):
        load_policy(MODEL, tmp_path, one_device)
