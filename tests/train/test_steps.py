"""Steps on models that are nothing but a table, with numbers worked out by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tables import bigram, table_of_values

from gptjax.data.candidates import packed
from gptjax.run.mesh import put
from gptjax.train.lm import lm_step
from gptjax.train.ppo import PpoConfig, initial_extra, minibatch, ppo_step
from gptjax.train.reward import reward_step
from gptjax.train.rollout import collect
from gptjax.train.sft import sft_step
from gptjax.train.update import initial_state
from gptjax.types import LmBatch, PpoBatch, PromptBatch, RewardBatch, Rollout

END = 3


def rows(mesh, tokens, targets, weights):
    tokens = np.array(tokens, np.int32)
    return put(
        LmBatch(
            tokens_BT=tokens,
            targets_BT=np.array(targets, np.int32),
            segments_BT=np.ones_like(tokens),
            positions_BT=np.zeros_like(tokens),
            weights_BT=np.array(weights, np.float32),
        ),
        mesh,
    )


@pytest.mark.parametrize(("step", "name"), [(lm_step, "lm/nats_per_token"), (sft_step, "sft/nats_per_token")])
def test_one_step_of_a_bigram_table(step, name, one_device):
    # two counted targets, 0 -> 1 and 1 -> 0, from uniform rows: loss ln 4, gradient (1/4 - [target]) / 2 in each row
    sgd = optax.sgd(1.0)
    state = initial_state({"table": jnp.zeros((4, 4))}, sgd, jax.random.key(0))
    batch = rows(one_device, [[0, 1, 2]], [[1, 0, 2]], [[1, 1, 0]])
    after, metrics = jax.jit(lambda s, b: step(s, b, model=bigram(), optimizer=sgd))(state, batch)
    np.testing.assert_allclose(metrics[name], np.log(4), rtol=1e-6)
    expected = np.zeros((4, 4))
    expected[0], expected[1] = [-0.125, 0.375, -0.125, -0.125], [0.375, -0.125, -0.125, -0.125]
    np.testing.assert_allclose(after.params["table"], expected, atol=1e-6)
    assert int(after.step) == 1


def test_a_batch_without_targets_changes_nothing(one_device):
    sgd = optax.sgd(1.0)
    state = initial_state({"table": jnp.ones((4, 4))}, sgd, jax.random.key(0))
    after, metrics = lm_step(state, rows(one_device, [[0, 1]], [[1, 0]], [[0, 0]]), model=bigram(), optimizer=sgd)
    assert float(metrics["lm/nats_per_token"]) == 0.0
    np.testing.assert_array_equal(after.params["table"], state.params["table"])


def test_one_step_of_a_reward_table(one_device):
    # candidates end in tokens 1 and 2 with values 0: loss ln 2, gradient -1/2 for the better one, +1/2 for the worse
    sgd = optax.sgd(1.0)
    state = initial_state({"value": jnp.zeros(4)}, sgd, jax.random.key(0))
    batch = RewardBatch(
        tokens_BCT=np.array([[[0, 1, 0], [0, 0, 2], [3, 3, 3]]], np.int32),
        lengths_BC=np.array([[2, 3, 0]], np.int32),
        ranks_BC=np.array([[1, 2, 0]], np.int32),
    )
    step = jax.jit(lambda s, b: reward_step(s, b, model=table_of_values(), optimizer=sgd))
    after, metrics = step(state, put(packed(batch, 4), one_device))
    np.testing.assert_allclose(metrics["reward/loss_nats"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(after.params["value"], [0, 0.5, -0.5, 0], atol=1e-6)
    assert float(metrics["reward/accuracy"]) == 0.5  # equal scores are half right


CONFIG = PpoConfig(minibatches=4, epochs=2, response_tokens=3, kl_coefficient=0.2, kl_target=1e-3)


@pytest.fixture
def ppo(one_device):
    """(state, rollout, step): a policy that has already left its reference."""
    policy, scalar, tx = bigram(), table_of_values(), optax.adam(1e-2)
    rng = np.random.default_rng(0)
    params = {"policy": {"table": jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)}, "value": {"value": jnp.ones(4)}}
    frozen = {
        "reference": {"table": jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)},
        "reward": {"value": jnp.asarray([0.0, 1.0, -1.0, 0.5])},
        "reward_gain": jnp.asarray(2.0),
        "reward_bias": jnp.asarray(-0.5),
    }
    state = initial_state(params, tx, jax.random.key(0), **initial_extra(CONFIG, params["policy"]))
    lengths = np.tile(np.array([1, 2, 3, 4], np.int32), 4)
    prompts = PromptBatch(tokens_BP=rng.integers(0, 3, (16, 4)).astype(np.int32), lengths_B=lengths)
    batch = put(PpoBatch(prompts=prompts), one_device)
    gather = jax.jit(
        lambda s, b: collect(s, frozen, b, jax.random.key(5), policy=policy, scalar=scalar, config=CONFIG, end_id=END)
    )
    step = jax.jit(lambda s, r: ppo_step(s, r, policy=policy, scalar=scalar, optimizer=tx, config=CONFIG))
    return state, gather(state, batch), step, frozen


def changed(rollout, mesh, **fields):
    """The rollout with some fields replaced by host arrays."""
    return put(Rollout(**(vars(jax.tree.map(np.asarray, rollout)) | fields)), mesh)


def test_a_rollout_holds_what_the_tables_say(ppo):
    state, rollout, _, frozen = ppo
    rollout = jax.tree.map(np.asarray, rollout)
    tokens, mask = np.asarray(rollout.tokens_BT), np.asarray(rollout.mask_BR)
    logp = np.asarray(jax.nn.log_softmax(state.params["policy"]["table"]))
    ref = np.asarray(jax.nn.log_softmax(frozen["reference"]["table"]))
    for row in range(16):
        length = mask[row].sum()
        before, given = tokens[row, 3 : 3 + length], tokens[row, 4 : 4 + length]
        assert mask[row, :length].all()
        np.testing.assert_allclose(rollout.logp_old_BR[row, :length], logp[before, given], atol=1e-6)
        np.testing.assert_allclose(rollout.logp_ref_BR[row, :length], ref[before, given], atol=1e-6)
        ended = given[-1] == END
        assert bool(rollout.ended_B[row]) == ended
        assert ended or length == 3
        score = 2.0 * np.array([0.0, 1.0, -1.0, 0.5])[given[-1]] - 0.5 - (0.0 if ended else CONFIG.missing_end_penalty)
        np.testing.assert_allclose(rollout.scores_B[row], score, atol=1e-6)
        total = score - 0.2 * (logp[before, given] - ref[before, given]).sum()
        np.testing.assert_allclose(rollout.rewards_BR[row].sum(), total, atol=1e-5)
    assert {True, False} == {bool(x) for x in rollout.ended_B}


def test_the_first_minibatch_has_ratio_one_no_loss_and_a_gradient(ppo):
    state, rollout, step, _ = ppo
    _, metrics = step(state, rollout)
    assert float(metrics["ppo/ratio_min"]) == pytest.approx(1.0, abs=1e-6)
    assert float(metrics["ppo/ratio_max"]) == pytest.approx(1.0, abs=1e-6)
    assert float(metrics["ppo/approx_kl_k3_nats"]) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["ppo/policy_loss"]) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["optim/grad_norm_policy"]) > 1e-3


def test_an_epoch_goes_once_over_the_rollout_in_a_fresh_order(ppo, one_device):
    state, rollout, _, _ = ppo
    numbered = changed(rollout, one_device, scores_B=np.arange(16.0))
    orders = []
    for number in range(CONFIG.updates):
        at = state.__class__(**(vars(state) | {"step": jnp.int32(number)}))
        orders.append(np.asarray(minibatch(at, numbered, CONFIG)[0].scores_B))
    first, second = np.concatenate(orders[:4]), np.concatenate(orders[4:])
    assert sorted(first) == sorted(second) == list(range(16))
    assert first.tolist() != second.tolist()


def test_what_stands_after_the_end_changes_nothing(ppo, one_device):
    state, rollout, step, _ = ppo
    mask_BR = np.asarray(rollout.mask_BR)
    names = ("logp_old_BR", "logp_ref_BR", "values_BR", "advantages_BR", "returns_BR")
    junk = {name: np.where(mask_BR, getattr(rollout, name), np.float32(7.5)) for name in names}
    junk["tokens_BT"] = np.where(np.pad(~mask_BR, ((0, 0), (4, 0))), np.int32(2), rollout.tokens_BT)
    after, metrics = step(state, rollout)
    other, other_metrics = step(state, changed(rollout, one_device, **junk))
    chex.assert_trees_all_equal(after.params, other.params)
    for name, value in metrics.items():
        np.testing.assert_array_equal(value, other_metrics[name], err_msg=name)


def test_the_kl_coefficient_moves_once_per_rollout(ppo):
    state, rollout, step, _ = ppo
    seen = []
    for _ in range(CONFIG.updates):
        state, metrics = step(state, rollout)
        seen.append(float(metrics["ppo/kl_coefficient"]))
    assert seen == pytest.approx([0.2] * CONFIG.updates)
    expected = 0.2 * (1 + 0.2 * 16 / CONFIG.kl_horizon)  # KL is far above its target: the clipped error
    assert float(state.extra["kl_coefficient"]) == pytest.approx(expected, rel=1e-6)


def test_the_end_token_is_learnt(ppo, one_device):
    state, rollout, step, _ = ppo
    ends_BR = np.asarray(rollout.mask_BR) & (np.asarray(rollout.tokens_BT)[:, 4:] == END)
    praised = changed(rollout, one_device, advantages_BR=np.where(ends_BR, 1.0, -1.0).astype(np.float32))
    before = np.asarray(jax.nn.log_softmax(state.params["policy"]["table"]))[:, END]
    for _ in range(CONFIG.updates):
        state, _ = step(state, praised)
    after = np.asarray(jax.nn.log_softmax(state.params["policy"]["table"]))[:, END]
    assert (after - before)[:3].min() > 0
