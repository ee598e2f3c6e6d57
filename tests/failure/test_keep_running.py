"""The restart loop: crashes and preemptions are restarted, what a restart would repeat is not."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "keep_running"


def scripted(folder: Path, codes: list[int]) -> list[str]:
    """A command that ends with the next of the codes each time, and counts its lives."""
    command = folder / "command"
    cases = "\n".join(f"{number}) exit {code};;" for number, code in enumerate(codes, start=1))
    command.write_text(f"#!/bin/sh\necho x >> {folder}/lives\ncase $(wc -l < {folder}/lives) in\n{cases}\nesac\n")
    command.chmod(0o755)
    return [str(SCRIPT), str(command)]


def lives(folder: Path) -> int:
    return (folder / "lives").read_text().count("x")


def keep_running(command) -> int:
    return subprocess.run(command, env=os.environ | {"WAIT": "0"}, capture_output=True, timeout=60).returncode


def test_ten_crashes_are_ten_restarts(tmp_path):
    crashes = [1, 139, 75, 134, 1, 75, 137, 1, 143, 75]
    assert keep_running(scripted(tmp_path, [*crashes, 0])) == 0
    assert lives(tmp_path) == 11


@pytest.mark.parametrize("code", [2, 3, 70])
def test_what_a_restart_would_repeat_is_not_restarted(code, tmp_path):
    assert keep_running(scripted(tmp_path, [1, code, 0])) == code
    assert lives(tmp_path) == 2


def test_asked_to_stop_it_asks_the_command_and_does_not_restart_it(tmp_path):
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\ntrap 'exit 75' TERM\necho x >> {tmp_path}/lives\nwhile :; do sleep .05; done\n")
    command.chmod(0o755)
    process = subprocess.Popen([str(SCRIPT), str(command)], env=os.environ | {"WAIT": "0"})
    while not (tmp_path / "lives").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert lives(tmp_path) == 1
