"""What a stage hands on: the policy that its result names, out of a checkpoint that holds more."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.tasks.upstream import load_policy
from gptjax.train.update import initial_state

SIZES = ModelConfig(vocab_size=8, layers=1, width=4, heads=1, max_length=4)


@pytest.mark.parametrize(("weights", "wanted"), [("last", 1.0), ("average", 2.0), (None, 3.0)])
def test_a_stage_hands_on_the_weights_that_its_result_names(weights, wanted, tmp_path, one_device):
    # a PPO stage with policies of ones (last) and twos (average); another stage of threes, whose result says nothing
    model = language_model(SIZES)
    first = jax.jit(model.init)(jax.random.key(0))
    ones, twos, threes = (jax.tree.map(lambda x, n=n: jnp.full_like(x, n), first) for n in (1.0, 2.0, 3.0))
    params = threes if weights is None else {"policy": ones, "value": {"head": jnp.zeros(())}}
    extra = {} if weights is None else {"average": twos, "kl_coefficient": jnp.zeros(())}
    state = initial_state(params, optax.sgd(1.0), jax.random.key(0), **extra)
    state = jax.device_put(state, jax.sharding.NamedSharding(one_device, jax.sharding.PartitionSpec()))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(state, 1, {})
    checkpoints.close()
    result = {"evaluation": {} if weights is None else {"policy_weights": weights}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    for leaf in jax.tree.leaves(load_policy(model, tmp_path, one_device)):
        np.testing.assert_array_equal(leaf, wanted)
