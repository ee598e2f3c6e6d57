"""A process that trains trunks of a sweep: `python -m gptjax.run.scale.worker FILE WORKDIR SLOT/SLOTS TRUNK...`."""

import fcntl
import os
import sys
import threading
import time
from pathlib import Path


def main(file: str, workdir: str, slot: str, *names: str) -> None:
    """Train what is left of these trunks, in their order, on this slot's share of the cores.

    Other workers do the same with the same list: a lock on each trunk keeps two of them from training one, whatever
    became of the process that started them. Trunks that are locked are looked at again when all others are done.
    """
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    _take_cores(*map(int, slot.split("/")))  # before JAX counts them
    from gptjax.run.start import start_jax

    start_jax()
    for wait in (False, True):
        for name in names:
            _train(file, Path(workdir), name, wait=wait)


def _train(file: str, workdir: Path, name: str, *, wait: bool) -> None:
    from gptjax.run.driver import train
    from gptjax.run.report.recipe import write_report
    from gptjax.run.scale.sweep import load_sweep, unfinished

    trunk = load_sweep(file).trunk(name)
    with (workdir / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if unfinished(workdir, trunk):
            train(trunk.recipe(), workdir / name)
            write_report(workdir / name)


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
