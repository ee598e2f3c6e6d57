"""One trunk of a sweep in a process of its own: `python -m gptjax.run.sweep_worker FILE TRUNK WORKDIR SLOT/SLOTS`."""

import fcntl
import os
import sys
import threading
import time
from pathlib import Path


def main(file: str, trunk_name: str, workdir: str, slot: str) -> None:
    """Train a trunk, or go on with it, on this slot's share of the cores.

    A lock makes sure that two processes never train one trunk, whatever became of the process that started them.
    """
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    _take_cores(*map(int, slot.split("/")))  # before JAX counts them
    from gptjax.run.start import start_jax

    start_jax()
    from gptjax.run.driver import run
    from gptjax.run.sweep import load_sweep

    folder = Path(workdir) / trunk_name
    with (Path(workdir) / f"{trunk_name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(load_sweep(file).trunk(trunk_name).recipe(), folder)


def _follow(parent: int) -> None:
    """End when the process that started this one is gone, however it went; the next call goes on from checkpoints."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(75)


def _take_cores(slot: int, slots: int) -> None:
    """Keep to every slots-th core: two small models on a core each are faster than one after the other on both."""
    if not hasattr(os, "sched_setaffinity"):  # not on this system
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= slots:
        os.sched_setaffinity(0, cores[slot::slots])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
