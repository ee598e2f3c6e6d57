"""Moments of a run at which it is interrupted, seen from outside in what it has written so far.

A moment is made before the command starts, and does not take for the command's own what an earlier one left behind.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from log_values import log_values

STAGES = ("lm", "sft", "reward", "ppo")
UPDATES = 4  # per rollout
Moment = Callable[[], bool]


def rows(stage: Path) -> int:
    path = stage / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def compiling(stage: Path) -> Moment:
    """The stage has begun and its first step is not done: tracing and compiling take nearly all of that time."""
    began = []

    def moment() -> bool:
        if (stage / "checkpoints").exists() and rows(stage) == 0:
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] > 0.3

    return moment


def logged(stage: Path, count: int) -> Moment:
    """This command has written to the log, which has at least `count` rows."""

    def version() -> int | None:
        path = stage / "metrics.jsonl"
        return path.stat().st_mtime_ns if path.exists() else None

    before = version()
    return lambda: version() != before and rows(stage) >= count


def stepping(stage: Path) -> Moment:
    return logged(stage, 9)


def evaluating(stage: Path) -> Moment:
    """The row of step 10 is there, and its held-out figures come next."""
    return logged(stage, 10)


def saving(stage: Path) -> Moment:
    def unfinished() -> set[tuple[str, int]]:
        found = set()
        for path in stage.glob("checkpoints/*tmp*"):
            with suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_ino))
        return found

    before = unfinished()
    return lambda: bool(unfinished() - before)


def rolling_out(stage: Path) -> Moment:
    """The last update on a rollout is logged, so the next rollout is under way."""
    return logged(stage, 2 * UPDATES)


def rolling_out_again(stage: Path) -> Moment:
    return logged(stage, 3 * UPDATES + 1)  # a row of held-out figures came in between


MOMENTS = {
    "compiling": compiling,
    "stepping": stepping,
    "evaluating": evaluating,
    "saving": saving,
    "rolling out": rolling_out,
    "rolling out again": rolling_out_again,
}


def assert_same_run(workdir: Path, expected: Path) -> None:
    for stage in STAGES:
        ours, theirs = (log_values(run / stage / "metrics.jsonl") for run in (workdir, expected))
        assert ours == theirs, stage
        ours, theirs = (json.loads((run / stage / "result.json").read_text()) for run in (workdir, expected))
        assert ours["evaluation"] == theirs["evaluation"], stage
        assert ours["tokens"] == theirs["tokens"], stage
    assert not list(workdir.glob("*/checkpoints/*tmp*"))


def flip_a_bit(stage: Path) -> str:
    """Damage the numbers in the newest checkpoint of a stage; returns its step."""
    newest = max((path for path in (stage / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    largest = max((newest / "model").rglob("*"), key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 16
    largest.write_bytes(raw)
    return newest.name
