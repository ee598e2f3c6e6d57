"""Running the real command in a subprocess, killing it at a chosen moment, and comparing what it wrote."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

RECIPE = Path(__file__).parent / "tiny.py"


def write_data(folder: Path) -> None:
    """A little corpus, conversations, rankings and prompts about numbers."""
    rng = random.Random(0)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    folder.mkdir(parents=True, exist_ok=True)

    def lines(name: str, rows: list) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ask(a: int, b: int) -> list:
        return [{"role": "user", "content": f"{words[a]} and {words[b]}?"}]

    pairs = [(rng.randrange(10), rng.randrange(10)) for _ in range(120)]
    lines("corpus.jsonl", [{"text": " ".join(rng.choice(words) for _ in range(40))} for _ in range(120)])
    lines(
        "chats.jsonl",
        [{"messages": [*ask(a, b), {"role": "assistant", "content": words[(a + b) % 10]}]} for a, b in pairs],
    )
    lines(
        "ranked.jsonl",
        [
            {
                "messages": ask(a, b),
                "responses": [{"content": words[(a + b + k) % 10]} for k in range(3)],
                "ranks": [1, 2, 2],
            }
            for a, b in pairs
        ],
    )
    lines("prompts.jsonl", [{"messages": ask(a, b)} for a, b in pairs])


class Ended(NamedTuple):
    """code: exit code.  output: stdout and stderr.  seconds: from the signal to the end."""

    code: int
    output: str
    seconds: float


def _listens(pid: int) -> bool:
    """Whether a process has a handler of SIGTERM (Linux says so; elsewhere we suppose it)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


class Runner:
    """Starts `gptjax run tests/failure/tiny.py` on the same data, with one compilation cache."""

    def __init__(self, folder: Path):
        self.folder = folder
        write_data(folder / "data")

    def start(self, workdir: Path, *options: str) -> subprocess.Popen:
        environment = os.environ | {
            "TINY_DATA": str(self.folder / "data"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "JAX_PLATFORMS": "cpu",
        }
        run = ["run", str(RECIPE), "--workdir", workdir.name, *options]  # relative, as people type it
        workdir.parent.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "gptjax", *run],
            cwd=workdir.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, workdir: Path, *options: str) -> str:
        """Run to the end; returns what it printed."""
        process = self.start(workdir, *options)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output[-3000:]
        return output

    def stop_when(self, workdir: Path, moment: Callable[[], bool], sign: int, *options: str) -> Ended:
        """Send the command a signal as soon as the moment has come, and wait for its end."""
        process = self.start(workdir, *options)
        deadline = time.monotonic() + 900
        while not (_listens(process.pid) and moment()):
            assert process.poll() is None, f"ended too early: {process.communicate()[0][-3000:]}"
            if time.monotonic() > deadline:
                process.kill()
                raise AssertionError(f"the moment never came: {process.communicate()[0][-3000:]}")
            time.sleep(0.002)
        began = time.monotonic()
        process.send_signal(sign)
        output, _ = process.communicate(timeout=900)
        return Ended(process.returncode, output, time.monotonic() - began)


@pytest.fixture(scope="session")
def runner(tmp_path_factory) -> Runner:
    return Runner(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def uninterrupted(runner) -> Path:
    workdir = runner.folder / "uninterrupted"
    runner.finish(workdir)
    return workdir
