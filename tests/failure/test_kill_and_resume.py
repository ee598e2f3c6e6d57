"""Stopped at any moment of any stage, by kill -9 or by a signal, then the same command: bitwise the same losses."""

import signal

import pytest
from moments import MOMENTS, STAGES, assert_same_run, flip_a_bit

from gptjax.run.exits import PREEMPTED
from gptjax.run.metrics import read_metrics

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
SHORT = [
    ("lm", "compiling", KILL),
    ("lm", "stepping", TERM),
    ("lm", "saving", KILL),
    ("sft", "evaluating", TERM),
    ("sft", "saving", KILL),
    ("reward", "stepping", KILL),
    ("reward", "saving", INT),
    ("ppo", "compiling", TERM),
    ("ppo", "rolling out", KILL),
    ("ppo", "rolling out again", TERM),
]
FULL = [
    (stage, moment, sign)
    for stage in STAGES
    for moment in MOMENTS
    for sign in (KILL, TERM)
    if stage == "ppo" or not moment.startswith("rolling")
]


def interrupt_at(runner, workdir, interruptions) -> None:
    for stage, moment, sign in interruptions:
        ended = runner.stop_when(workdir, MOMENTS[moment](workdir / stage), sign)
        assert ended.code == (-sign if sign == KILL else PREEMPTED), f"{stage}, {moment}: {ended.output[-2000:]}"
        if sign != KILL:
            assert "saving at the next safe point" in ended.output
            assert "run the same command again to go on" in ended.output


def test_ten_interruptions_of_four_stages_leave_the_same_losses(runner, uninterrupted, tmp_path):
    interrupt_at(runner, tmp_path / "run", SHORT)
    runner.finish(tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_a_flipped_bit_in_the_newest_checkpoint_costs_only_the_steps_since_the_one_before(
    runner, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    interrupt_at(runner, workdir, [("lm", "evaluating", TERM)])
    step = flip_a_bit(workdir / "lm")
    output = runner.finish(workdir)
    assert f"the checkpoint of step {step} is damaged (model." in output
    assert "is not what was saved" in output
    assert (workdir / "lm" / "checkpoints" / f"{step}.damaged").exists()
    assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_interruptions_at_every_moment_of_every_stage_leave_the_same_losses(runner, uninterrupted, tmp_path):
    interrupt_at(runner, tmp_path / "run", FULL)
    runner.finish(tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


def test_every_step_is_logged_once(uninterrupted):
    for stage, steps, loss in (("lm", 24, "lm/nats_per_token"), ("ppo", 24, "ppo/policy_loss")):
        logged = [row["step"] for row in read_metrics(uninterrupted / stage / "metrics.jsonl") if loss in row]
        assert logged == list(range(1, steps + 1))


def test_a_finished_run_is_left_alone(runner, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.glob("*/checkpoints/**/*") if path.is_file()}
    runner.finish(uninterrupted)
    assert before == {
        path: path.stat().st_mtime_ns for path in uninterrupted.glob("*/checkpoints/**/*") if path.is_file()
    }
