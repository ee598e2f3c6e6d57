"""One DPO update on a table, by hand, and on a tiny Transformer before anything was learnt."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tables import bigram

from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.run.mesh import put
from gptjax.train.dpo import DpoConfig, dpo_step, response_logps
from gptjax.train.update import initial_state
from gptjax.types import PreferenceBatch

SGD = optax.sgd(1.0)


def pairs(tokens, lengths, prompts, logp_ref=None):
    tokens_BCT, lengths_BC = np.array(tokens, np.int32), np.array(lengths, np.int32)
    return PreferenceBatch(
        tokens_BCT=tokens_BCT[:, :, :-1],
        targets_BCT=tokens_BCT[:, :, 1:],
        lengths_BC=lengths_BC,
        prompt_lengths_B=np.array(prompts, np.int32),
        logp_ref_BC=np.zeros(lengths_BC.shape, np.float32) if logp_ref is None else np.array(logp_ref, np.float32),
    )


# prompt 0 (two tokens in the second), responses 1 3 and 2; then 1 and 2 3
TWO = pairs([[[0, 1, 3, 0, 0], [0, 2, 0, 0, 0]], [[0, 0, 1, 0, 0], [0, 0, 2, 3, 0]]], [[3, 2], [3, 4]], [1, 2])


def updated(mesh, batch, config, table=None):
    state = initial_state({"table": jnp.zeros((4, 4)) if table is None else table}, SGD, jax.random.key(0))
    step = jax.jit(partial(dpo_step, model=bigram(), optimizer=SGD, config=config))
    after, metrics = step(state, put(batch, mesh))
    return np.asarray(after.params["table"]), metrics


def test_responses_are_worth_their_own_tokens_end_in_and_prompt_out(one_device):
    table = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    logp = table - np.log(np.exp(table).sum(1, keepdims=True))
    expected = [[logp[0, 1] + logp[1, 3], logp[0, 2]], [logp[0, 1], logp[0, 2] + logp[2, 3]]]
    found = response_logps({"table": jnp.asarray(table)}, {}, put(TWO, one_device), model=bigram())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    in_pieces = response_logps({"table": jnp.asarray(table)}, {}, put(TWO, one_device), model=bigram(), loss_chunks=2)
    np.testing.assert_allclose(in_pieces, expected, atol=1e-5)


def test_an_update_by_hand(one_device):
    # p = 1/4 and reference 2 ln(1/4), ln(1/4): h = 0.  beta 2: slope of each pair -2/2 on the chosen, +1 on the
    # rejected, halved by the mean.  Row 0: pair 0 ([1] - [2]) / 2, pair 1 the same; row 1: ([3] - p) / 2; row 2: minus
    logs = np.log(0.25)
    batch = dataclasses.replace(TWO, logp_ref_BC=np.array([[2 * logs, logs], [logs, 2 * logs]], np.float32))
    table, metrics = updated(one_device, batch, DpoConfig(beta=2.0))
    expected = np.zeros((4, 4))
    expected[0] = [0, 1, -1, 0]
    expected[1] = [-0.125, -0.125, -0.125, 0.375]
    expected[2] = [0.125, 0.125, 0.125, -0.375]
    np.testing.assert_allclose(table, expected, atol=1e-6)
    np.testing.assert_allclose(metrics["dpo/loss"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(metrics["dpo/logp_chosen_nats"], 1.5 * logs, rtol=1e-6)
    assert [float(metrics[f"dpo/{name}"]) for name in ("pairs", "tokens", "tie_fraction", "accuracy")] == [
        2,
        12,
        1,
        0.5,
    ]


def test_an_empty_response_and_a_filler_pair_do_not_count(one_device):
    # the second pair's chosen response has no token, the third is filler: what is left is the first pair alone
    tokens = np.concatenate([TWO.tokens_BCT, TWO.targets_BCT[:, :, -1:]], axis=2)
    three = pairs([*tokens, np.zeros((2, 5))], [[3, 2], [2, 4], [0, 0]], [1, 2, 0], [[0, 0], [np.nan, 0], [0, 0]])
    table, metrics = updated(one_device, three, DpoConfig())
    alone, _ = updated(one_device, pairs(tokens[:1], [[3, 2]], [1]), DpoConfig())
    assert int(metrics["dpo/pairs"]) == 1
    np.testing.assert_allclose(table, alone, atol=1e-7)
    nothing, metrics = updated(one_device, pairs(tokens[:1], [[0, 0]], [0]), DpoConfig())
    np.testing.assert_array_equal(nothing, np.zeros((4, 4)))
    assert float(metrics["dpo/loss"]) == 0.0


def test_averaging_over_tokens_is_a_setting(one_device):
    # reference 0: h = (2 ln p) / 2 - ln p = 0 averaged, ln p summed
    _, metrics = updated(one_device, TWO, DpoConfig(length_averaged=True))
    np.testing.assert_allclose(metrics["dpo/margin"], 0.0, atol=1e-7)
    _, summed = updated(one_device, jax.tree.map(lambda x: x[:1], TWO), DpoConfig())
    np.testing.assert_allclose(summed["dpo/margin"], 0.1 * np.log(0.25), rtol=1e-6)


def test_a_transformer_starts_with_ties_at_ln_2_and_padding_changes_nothing(one_device):
    # dropout is a setting of the model, and off: the reference pass and the step see the same model
    model = language_model(ModelConfig(vocab_size=16, layers=1, width=8, heads=2, max_length=16, dropout=0.5))
    params = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 9, (4, 2))
    batch = pairs(rng.integers(0, 16, (4, 2, 9)), lengths, [2, 3, 2, 3])
    logps = jax.jit(partial(response_logps, model=model))
    batch = dataclasses.replace(batch, logp_ref_BC=np.asarray(logps(params, {}, put(batch, one_device))))
    state = initial_state(params, SGD, jax.random.key(0))
    step = jax.jit(lambda s, b: dpo_step(s, b, model=model, optimizer=SGD, config=DpoConfig()))
    after, metrics = step(state, put(batch, one_device))
    np.testing.assert_allclose(metrics["dpo/loss"], np.log(2), rtol=1e-5)
    assert (float(metrics["dpo/tie_fraction"]), float(metrics["dpo/accuracy"])) == (1.0, 0.5)
    assert abs(metrics["dpo/margin"]) < 1e-5
    outside = np.arange(8)[None, None] >= lengths[:, :, None]
    filled = dataclasses.replace(batch, tokens_BCT=np.where(outside, 15, batch.tokens_BCT).astype(np.int32))
    again, _ = step(state, put(filled, one_device))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), after.params, again.params)
    _, later = step(after, put(batch, one_device))
    assert later["dpo/loss"] < metrics["dpo/loss"]
    assert later["dpo/margin"] > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"beta": -1.0}, "dpo.beta must be positive"), ({"loss_chunks": 0}, "dpo.loss_chunks must be at least 1, got 0")],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        DpoConfig(**wrong)
