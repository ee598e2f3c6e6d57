"""The full form of the failure tests, with the table of what was tried and what became of it:

    python tests/failure/full.py                             50 kills, 20 signals, 20 flipped bits for each file
    python tests/failure/full.py --kills 4 --signals 2 --flips 1

Needs nothing but the repository; exit code 1 if anything was lost or wrong numbers were loaded.
"""

import argparse
import itertools
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from conftest import RECIPE, Runner
from moments import MOMENTS, STAGES, assert_same_run

from gptjax.run.exits import PREEMPTED

PLAN = [(stage, moment) for stage in STAGES for moment in MOMENTS if stage == "ppo" or not moment.startswith("rolling")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("kills", 50), ("signals", 20), ("flips", 20)):
        parser.add_argument(f"--{name}", type=int, default=count)
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # as in every run: orbax prints what it then raises
    folder = Path(tempfile.mkdtemp(prefix="gptjax-failure-"))
    runner, lines = Runner(folder), []
    say("the run that nobody touches")
    runner.finish(folder / "expected")
    lines += interruptions(runner, folder, signal.SIGKILL, args.kills)
    lines += interruptions(runner, folder, signal.SIGTERM, args.signals)
    lines += corruption(runner, folder, args.flips)
    print("| what | where | tries | outcome |\n|---|---|---|---|")
    print("\n".join(lines))
    shutil.rmtree(folder)
    raise SystemExit(any("WRONG" in line for line in lines))


def interruptions(runner: Runner, folder: Path, sign: signal.Signals, count: int) -> list[str]:
    """Stop runs until `count` have been stopped; every run is then finished and compared bit for bit."""
    tried, slowest, wrong = Counter(), Counter(), []
    left = count
    for number in itertools.count():
        if left <= 0:
            break
        workdir = folder / f"{sign.name}-{number}"
        for stage, moment in PLAN[-left:]:  # the last run begins late, for rollouts are only in the last stage
            say(f"{sign.name}: {count - left + 1} of {count}, {stage}, {moment}")
            ended = runner.stop_when(workdir, MOMENTS[moment](workdir / stage), sign)
            left -= 1
            tried[moment] += 1
            slowest[moment] = max(slowest[moment], ended.seconds)
            if ended.code != (-sign if sign == signal.SIGKILL else PREEMPTED):
                wrong.append(f"{stage}, {moment}: exit code {ended.code}")
        runner.finish(workdir)
        try:
            assert_same_run(workdir, folder / "expected")
        except AssertionError as error:
            wrong.append(f"run {number}: {str(error)[:200]}")
        shutil.rmtree(workdir)
    outcome = f"WRONG: {'; '.join(wrong)}" if wrong else "losses, figures and token counts bitwise the same"
    return [
        f"| {sign.name} | {moment} | {tries} | {outcome}; at most {slowest[moment]:.1f} s to the end |"
        for moment, tries in tried.items()
    ]


def corruption(runner: Runner, folder: Path, flips: int) -> list[str]:
    """Damage each file of the newest checkpoint of each stage, in this process, and load it."""
    os.environ["TINY_DATA"] = str(runner.folder / "data")
    from test_stage_checkpoints import damaged_loads

    lines = []
    for stage in STAGES:
        say(f"damage to the checkpoints of {stage}")
        counts = damaged_loads(RECIPE, folder / "expected", stage, flips, random.Random(0))
        outcome = ", ".join(f"{n} {what}" for what, n in counts.items())
        wrong = "WRONG: " if counts["wrong"] else ""
        lines.append(
            f"| damage: half, empty, gone, {flips} bits | every file of {stage} | {counts.total()} | {wrong}{outcome} |"
        )
    return lines


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
