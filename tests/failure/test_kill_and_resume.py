"""kill -9 at any moment of any stage, then the same command: bitwise the losses of a run that nobody touched."""

import json
import signal
import time
from pathlib import Path

import pytest

from gptjax.run.metrics import read_metrics, same_losses

STAGES = ("lm", "sft", "reward", "ppo")
UPDATES = 4  # per rollout


def rows(stage: Path) -> int:
    path = stage / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def compiling(stage: Path):
    """The stage has begun and its first step is not done: tracing and compiling take nearly all of that time."""
    began = []

    def moment() -> bool:
        if (stage / "checkpoints").exists() and rows(stage) == 0:
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] > 0.3

    return moment


def stepping(stage: Path):
    return lambda: rows(stage) >= 9


def saving(stage: Path):
    return lambda: any(stage.glob("checkpoints/*tmp*"))


def rolling_out(stage: Path):
    """The last update on a rollout is logged, so the next rollout is under way."""
    return lambda: rows(stage) >= 2 * UPDATES


MOMENTS = {"compiling": compiling, "stepping": stepping, "saving": saving, "rolling out": rolling_out}
SHORT = [("lm", "saving"), ("reward", "stepping"), ("ppo", "rolling out")]
FULL = [(stage, moment) for stage in STAGES for moment in MOMENTS if stage == "ppo" or moment != "rolling out"]


def assert_same_run(workdir: Path, expected: Path) -> None:
    for stage in STAGES:
        assert same_losses(workdir / stage / "metrics.jsonl", expected / stage / "metrics.jsonl") == [], stage
        ours, theirs = (json.loads((run / stage / "result.json").read_text()) for run in (workdir, expected))
        assert ours["evaluation"] == theirs["evaluation"], stage
        assert ours["tokens"] == theirs["tokens"], stage
    assert not list(workdir.glob("*/checkpoints/*tmp*"))


def kill_at(runner, workdir: Path, moments) -> None:
    for stage, moment in moments:
        assert runner.kill_when(workdir, MOMENTS[moment](workdir / stage)), f"{stage} ended before {moment}"
    runner.finish(workdir)


def test_runs_killed_in_a_save_a_step_and_a_rollout_end_with_the_same_losses(runner, uninterrupted, tmp_path):
    kill_at(runner, tmp_path / "run", SHORT)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_runs_killed_at_every_moment_of_every_stage_end_with_the_same_losses(runner, uninterrupted, tmp_path):
    kill_at(runner, tmp_path / "run", FULL)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_ctrl_c_says_how_to_go_on(runner, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    assert runner.kill_when(workdir, stepping(workdir / "lm"), signal.SIGINT)
    output = runner.finish(workdir)
    assert "report:" in output
    assert_same_run(workdir, uninterrupted)


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
