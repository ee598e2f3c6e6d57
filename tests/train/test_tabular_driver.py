"""The driver with tables for models: it reaches the optima too, and an interrupted run ends as an undisturbed one."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from log_values import log_values
from tabular import (
    CONFIG,
    DPO,
    DPO_STEPS,
    ITERATIONS,
    POLICY,
    PPO_ROWS,
    RLOO,
    RLOO_ROWS,
    adam,
    first_state,
    policy_adam,
)
from tabular_world import (
    END,
    accepted,
    figures,
    frozen_models,
    preferred_gap,
    preferred_pairs,
    prompts,
    scalar_tables,
    table_model,
)

from gptjax.model.config import ModelConfig
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.experiment import Experiment
from gptjax.run.goodput import Goodput
from gptjax.run.metrics import MetricsLog, read_metrics
from gptjax.run.stop import Stop
from gptjax.run.task import Task
from gptjax.run.tasks.dpo import DpoTask
from gptjax.run.tasks.grpo import GrpoTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.training import Training
from gptjax.train.dpo import dpo_step
from gptjax.train.group_rollout import collect_groups
from gptjax.train.grpo import grpo_step
from gptjax.train.ppo import ppo_step, served_policy
from gptjax.train.rollout import collect
from gptjax.train.update import initial_state

SHORT = replace(CONFIG, minibatches=2, epochs=2, kl_target=0.5, kl_horizon=200.0, average_decay=0.9, stop_kl=1e-3)


class Interrupted(Exception):
    """Stands for kill -9 between two rollouts."""


def tabular_task(config, rollouts, rows=PPO_ROWS):
    tx = adam(rollouts * config.updates)
    about = {"policy": table_model(), "scalar": scalar_tables(), "config": config}
    return Task(
        init=lambda key: first_state(key, config, tx),
        data=lambda position: prompts(rows),
        collect=partial(collect, **about, end_id=END),
        frozen_models=jax.jit(frozen_models)(),
        step=partial(ppo_step, **about, optimizer=tx),
        updates_per_batch=config.updates,
        evaluate=lambda state: {},
        finish=lambda state: (state, figures(np.asarray(served_policy(state)["table"]))._asdict()),
        tokens="ppo/tokens",
        loss="ppo/score",
        data_fingerprint="tabular",
    )


def rloo_task():
    model, tx = table_model(), policy_adam(ITERATIONS * RLOO.updates)
    return Task(
        init=lambda key: initial_state(model.init(key), tx, key),
        data=lambda position: prompts(RLOO_ROWS).prompts,
        collect=partial(collect_groups, policy=model, scalar=scalar_tables(), config=RLOO, end_id=END),
        frozen_models=jax.jit(frozen_models)(),
        step=partial(grpo_step, policy=model, optimizer=tx, config=RLOO),
        updates_per_batch=RLOO.updates,
        evaluate=lambda state: {},
        finish=lambda state: (state, figures(np.asarray(state.params["table"]))._asdict()),
        tokens="grpo/tokens",
        loss="grpo/score",
        data_fingerprint="tabular",
    )


def dpo_task():
    model, tx, pairs = table_model(), policy_adam(DPO_STEPS), preferred_pairs()
    return Task(
        init=lambda key: initial_state(model.init(key), tx, key),
        data=lambda position: pairs,
        step=partial(dpo_step, model=model, optimizer=tx, config=DPO),
        evaluate=lambda state: {},
        finish=lambda state: (state, {"gap_nats": preferred_gap(np.asarray(state.params["table"]))}),
        tokens="dpo/tokens",
        loss="dpo/loss",
        data_fingerprint="tabular",
    )


def experiment(task, *, steps, prompts, save_every):
    return Experiment(
        task=task,
        model=ModelConfig(vocab_size=4, layers=1, width=4, heads=1, max_length=4),
        optimizer=POLICY,
        steps=steps,
        batch_size=prompts,
        save_every=save_every,
    )


def run(folder, task, settings):
    """(final state, what finish said), from the newest checkpoint on if there is one."""
    checkpoints, log = Checkpoints(folder / "checkpoints", keep=2), MetricsLog(folder)
    try:
        return Training("tabular", settings, task, checkpoints, log, Stop(), Goodput()).run()
    finally:
        log.close()
        checkpoints.close()


def test_a_run_that_was_broken_off_ends_bitwise_like_one_that_was_not(tmp_path, one_device):
    # 8 rollouts of 4 updates, saved after every second one and broken off before the sixth: the last save is step 16
    def data(position):
        if position == 5:
            raise Interrupted
        return task.data(position)

    task = tabular_task(SHORT, 8, 32)
    settings = experiment(PpoTask(ppo=SHORT), steps=8 * SHORT.updates, prompts=32, save_every=8)
    whole, _ = run(tmp_path / "whole", task, settings)
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", replace(task, data=data), settings)
    resumed, _ = run(tmp_path / "broken", task, settings)
    assert sorted(resumed.extra) == [
        "average",
        "data_offset",
        "kl_coefficient",
        "stopped",
        "updates_made",
        "updates_skipped",
    ]
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    logs = [tmp_path / name / "metrics.jsonl" for name in ("whole", "broken")]
    assert log_values(logs[0]) == log_values(logs[1])
    # none of it stood still: the coefficient moved, some updates were left out, the average lags behind the policy
    assert float(whole.extra["kl_coefficient"]) != SHORT.kl_coefficient
    made = sum(row["ppo/updates"] for row in read_metrics(logs[0]) if "ppo/updates" in row)
    assert made == int(whole.extra["updates_made"])
    assert 8 <= made < 32
    assert np.abs(whole.extra["average"]["table"] - whole.params["policy"]["table"]).max() > 1e-3


@pytest.mark.slow
def test_the_driver_reaches_the_optimum_with_ppo(tmp_path, one_device):
    steps = ITERATIONS * CONFIG.updates
    settings = experiment(PpoTask(ppo=CONFIG), steps=steps, prompts=PPO_ROWS, save_every=480)
    _, about = run(tmp_path, tabular_task(CONFIG, ITERATIONS), settings)
    assert accepted(figures(np.zeros((52, 4)))._replace(**about["evaluation"]))


@pytest.mark.slow
def test_the_driver_reaches_the_optimum_with_rloo(tmp_path, one_device):
    steps = ITERATIONS * RLOO.updates
    settings = experiment(GrpoTask(grpo=RLOO), steps=steps, prompts=RLOO_ROWS, save_every=steps)
    _, about = run(tmp_path, rloo_task(), settings)
    assert accepted(figures(np.zeros((52, 4)))._replace(**about["evaluation"]))


def test_the_driver_reaches_the_closed_form_with_dpo(tmp_path, one_device):
    settings = experiment(DpoTask(dpo=DPO), steps=DPO_STEPS, prompts=64, save_every=DPO_STEPS)
    _, about = run(tmp_path, dpo_task(), settings)
    assert about["evaluation"]["gap_nats"] < 1e-4
