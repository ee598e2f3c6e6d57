"""When a run goes back, stops or is ended: the parts, without a run."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptjax.run.faults import FaultsConfig, LossWatch
from gptjax.run.goodput import USES, Goodput
from gptjax.run.watchdog import Watchdog

NAN = float("nan")


def first_bad(losses, watch):
    """(step at which the watch gives the alarm, first bad step), or None."""
    for step, loss in enumerate(losses, start=1):
        found = watch.see(step, loss, skipped=loss != loss)
        if found is not None:
            return step, found
    return None


def test_only_bad_steps_in_a_row_give_the_alarm():
    assert first_bad([1, NAN, NAN, 1, NAN, NAN, NAN, 1], LossWatch(3, None)) == (7, 5)
    assert first_bad([1, NAN, NAN, 1, NAN, NAN, 1], LossWatch(3, None)) is None
    assert first_bad([1e9, 1, 1e9], LossWatch(1, None)) is None


def test_neither_nan_nor_a_spike_moves_what_counts_as_one():
    ordinary = [1.0, 1.1, 0.9] * 20
    watch = LossWatch(2, 6.0)
    assert first_bad([*ordinary, NAN, *ordinary], watch) is None
    assert not watch.is_spike(1.5)  # median 1, MAD .1: a robust deviation is .148
    assert watch.is_spike(1.0 + 6 * 0.1483 + 1e-3)
    assert first_bad([*ordinary, 9.0, 1.0, 9.0, 9.0], LossWatch(2, 6.0)) == (64, 63)


def test_a_few_losses_are_no_ground_for_a_spike():
    assert first_bad([1.0] * 20 + [50.0] * 5, LossWatch(1, 6.0)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bad_steps": 0}, "faults.bad_steps must be at least 1, got 0"),
        ({"replay_every": 0}, "faults.replay_every must be at least 1, got 0"),
        ({"rollbacks": -1}, "faults.rollbacks must not be negative, got -1"),
        ({"stall_seconds": 0.0}, "faults.stall_seconds must be positive, got 0.0"),
        ({"stall_seconds": float("inf")}, "faults.stall_seconds must be finite, got inf"),
        ({"spike_deviations": NAN}, "faults.spike_deviations must be positive"),
    ],
)
def test_wrong_settings_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        FaultsConfig(**changes)


def test_every_second_belongs_to_one_use():
    now = [100.0]
    goodput = Goodput(clock=lambda: now[0])
    goodput.add({"step": 5.0, "unknown": 9.0})
    now[0] += 1
    with goodput("step"):
        now[0] += 2
        with goodput("data"):
            now[0] += 4
        now[0] += 8
        with goodput("save"):
            now[0] += 16
        now[0] += 32
    expected = dict.fromkeys(USES, 0.0) | {"init": 1.0, "step": 5.0 + 2 + 8 + 32, "data": 4.0, "save": 16.0}
    assert goodput.read() == expected
    now[0] += 64
    assert goodput.read() == expected | {"init": 65.0}


def test_the_watchdogs_patience_grows_with_the_median_step():
    now = [0.0]
    watchdog = Watchdog(None, clock=lambda: now[0])
    try:
        assert watchdog.seconds() == 600
        for seconds in (0, 30, 30, 30, 500):
            now[0] += seconds
            watchdog.heard()
        assert watchdog.seconds() == 50 * 30
        assert Watchdog(7.0).seconds() == 7.0
    finally:
        watchdog.rest()


@pytest.mark.parametrize("how", ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)"])  # the second one keeps the GIL
def test_the_watchdog_ends_a_process_that_hangs_and_shows_where(how):
    code = (
        "import ctypes, time\nfrom gptjax.run.watchdog import Watchdog\n"
        f"def stuck():\n    {how}\n"
        "dog = Watchdog(1.0)\ndog.heard()\ntime.sleep(.5)\ndog.heard()\ntime.sleep(.7)\ndog.heard()\nstuck()\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in stuck" in done.stderr
    assert time.monotonic() - began < 30


def test_a_watchdog_at_rest_lets_a_long_pause_be():
    code = (
        "import time\nfrom gptjax.run.watchdog import Watchdog\n"
        "dog = Watchdog(.2)\ndog.heard()\ndog.rest()\ntime.sleep(.6)\nprint('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, "alive\n")
