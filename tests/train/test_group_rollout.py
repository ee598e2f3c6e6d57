"""Groups of answers: what the tables say of each, on one device and spread over several."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from tables import bigram, table_of_values

from gptjax import dims
from gptjax.generate.engine import SamplingConfig
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.train.group_rollout import collect_groups, repeated
from gptjax.train.grpo import GrpoConfig, RlooLoss
from gptjax.train.rollout import draw
from gptjax.train.update import initial_state
from gptjax.types import PromptBatch

END = 3
CONFIG = GrpoConfig(group_size=3, response_tokens=4, kl_coefficient=0.2, loss=RlooLoss())


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    policy, reference = rng.normal(size=(2, 4, 4)).astype(np.float32)
    return policy, reference, np.array([0.0, 1.0, -1.0, 0.5], np.float32)


def collected(tables, mesh_config, scored=False):
    """A rollout; scored: its answers are drawn first and come with a score of 10 per token, as from a program."""
    policy, reference, values = tables
    mesh = make_mesh(mesh_config, jax.devices()[: math.prod(mesh_config.sizes(mesh_config.fsdp))])
    with jax.set_mesh(mesh):
        state = initial_state({"table": jnp.asarray(policy)}, optax.sgd(1.0), jax.random.key(0))
        frozen = {"reference": {"table": jnp.asarray(reference)}, "reward": {"value": jnp.asarray(values)}}
        frozen |= {"reward_gain": jnp.float32(2.0), "reward_bias": jnp.float32(-0.5)}
        tokens_BP = np.array([[0, 1], [0, 2], [1, 0], [2, 1]], np.int32)
        prompts = put(PromptBatch(tokens_BP=tokens_BP, lengths_B=np.array([1, 2, 2, 1], np.int32)), mesh)
        gather = partial(collect_groups, policy=bigram(), scalar=table_of_values(), config=CONFIG, end_id=END)
        if scored:
            drawn = jax.jit(_drawn)(state.params, prompts, jax.random.key(5))
            scores_B = 10.0 * np.asarray(drawn.mask_BR).sum(1).astype(np.float32)
            placed_B = jax.device_put(scores_B, NamedSharding(mesh, dims.act_spec("B")))
            prompts = replace(prompts, drawn=replace(drawn, scores_B=placed_B))
            frozen = {"reference": frozen["reference"]}
        found = jax.jit(gather)(state, frozen, prompts, jax.random.key(5))
        assert jax.typeof(found.tokens_BCT).sharding.spec[1] is None  # a group is not spread
        return jax.tree.map(np.asarray, found)


def _drawn(params, prompts, key):
    sampling = SamplingConfig(max_new_tokens=CONFIG.response_tokens)
    rows = repeated(prompts, CONFIG.group_size)
    return draw(params, {}, rows, key, policy=bigram(), sampling=sampling, end_id=END)


def test_a_group_holds_what_the_tables_say(tables):
    policy, reference, values = tables
    found = collected(tables, MeshConfig(data=1))
    logp, ref = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (policy, reference))
    for b, last in enumerate((1, 2, 0, 1)):
        rewards = []
        for c in range(3):
            length = found.mask_BCR[b, c].sum()
            given = found.tokens_BCT[b, c, 2 : 2 + length]
            before = np.concatenate([[last], given[:-1]])
            np.testing.assert_allclose(found.logp_old_BCR[b, c, :length], logp[before, given], atol=1e-5)
            np.testing.assert_allclose(found.logp_ref_BCR[b, c, :length], ref[before, given], atol=1e-5)
            ended = given[-1] == END
            assert bool(found.ended_BC[b, c]) == ended
            score = 2.0 * values[given[-1]] - 0.5 - (0.0 if ended else CONFIG.missing_end_penalty)
            np.testing.assert_allclose(found.scores_BC[b, c], score, atol=1e-5)
            rewards.append(score - 0.2 * (logp[before, given] - ref[before, given]).sum())
        np.testing.assert_allclose(found.rewards_BC[b], rewards, atol=1e-5)
        others = [(sum(rewards) - r) / 2 for r in rewards]
        np.testing.assert_allclose(found.advantages_BC[b], np.array(rewards) - others, atol=1e-5)
    assert found.counted_BC.all()
    assert len({tuple(answer) for answer in found.tokens_BCT[:, :, 2:].reshape(12, 4).tolist()}) > 3


def test_groups_are_the_same_when_prompts_are_spread(tables):
    alone, spread = collected(tables, MeshConfig(data=1)), collected(tables, MeshConfig(data=1, fsdp=2, tensor=1))
    for name, values in vars(alone).items():
        np.testing.assert_allclose(getattr(spread, name), values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("mesh_config", [MeshConfig(data=1), MeshConfig(data=1, fsdp=2, tensor=1)])
def test_answers_that_come_with_scores_are_neither_drawn_nor_scored_again(tables, mesh_config):
    asked, scored = collected(tables, MeshConfig(data=1)), collected(tables, mesh_config, scored=True)
    np.testing.assert_array_equal(scored.tokens_BCT, asked.tokens_BCT)
    penalty_BC = np.where(asked.ended_BC, 0.0, CONFIG.missing_end_penalty)
    np.testing.assert_allclose(scored.scores_BC, 10.0 * asked.mask_BCR.sum(2) - penalty_BC)
    np.testing.assert_allclose(scored.logp_ref_BCR, asked.logp_ref_BCR, atol=1e-5)
