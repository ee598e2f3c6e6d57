"""One checkpoint off the disk, compared with its record bit for bit: Orbax loads flipped bits without a word."""

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import uvloop
from orbax.checkpoint import v1 as ocp

from gptjax.run.record import DamagedError, check_layout, check_parts, place_of, read_record
from gptjax.tree import fingerprints


def load_model(folder: Path, abstract_model: Any) -> dict[str, Any]:
    """What is asked for of `params` and `extra` in the newest checkpoint of a stage's folder, in the given layout.

    Args:
        folder: the stage's folder (with `checkpoints` in it).
        abstract_model: {"params", "extra"}, or any part of that tree, of jax.ShapeDtypeStruct with shardings.

    Raises:
        ValueError: no checkpoint there, or it is damaged, of another model, or lacks an array that was asked for.
    """
    place = folder / "checkpoints"
    steps = [int(path.name) for path in place.glob("*") if path.name.isdigit()]
    if not steps:
        raise ValueError(f"no checkpoint in {place}: has that stage been trained?")
    step, context = max(steps), ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            parts, _ = verified((place / str(step)).absolute(), {"model": abstract_model}, partly=True)
    except DamagedError as error:
        raise ValueError(
            f"the newest checkpoint in {place}, of step {step}, is damaged ({error}); nothing was deleted: restore it "
            f"from a copy, or move result.json out of {folder} and run its recipe again to repeat the end of that stage"
        ) from error
    return parts["model"]


def verified(path: Path, wanted: dict[str, Any], *, partly: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of a checkpoint that are wanted, and what was said about it.

    Raises:
        DamagedError: a file cannot be read, or an array is not bit for bit what was saved; it says which.
        ValueError: the checkpoint is of another model, or from a newer version of gptjax.
    """
    record = read_record(path)
    check_layout(record["fingerprints"], wanted, path, partly=partly)
    check_parts(path, list(wanted))
    parts: dict[str, Any] = {}
    try:
        for name in wanted:  # one by one: when one fails, Orbax forgets to await the others, and Python warns
            parts |= _load(path, {name: wanted[name]})
    except Exception as error:  # Orbax raises whatever the broken file provokes
        raise DamagedError(place_of(error, path)) from error
    for name, mark in fingerprints(parts).items():
        if mark != record["fingerprints"].get(name):
            raise DamagedError(f"{name} is not what was saved: {mark}, not {record['fingerprints'].get(name)}")
    return parts, record["about"]


def _load(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Orbax's loading, in a thread: what a signal raises in the main one would end it halfway and look like damage."""
    with _loops_that_end_their_tasks(), ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, ocp.load_checkpointables, str(path), wanted).result()


@contextmanager
def _loops_that_end_their_tasks() -> Iterator[None]:
    """When one array cannot be read, Orbax closes its loops while others are being read, and each prints a trace."""
    places: tuple[Any, ...] = (asyncio, uvloop)
    before = [place.new_event_loop for place in places]
    for place in places:
        place.new_event_loop = _Loop
    try:
        yield
    finally:
        for place, function in zip(places, before, strict=True):
            place.new_event_loop = function


class _Loop(uvloop.Loop):
    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(_ended(tasks))
        super().close()


async def _ended(tasks: Iterable[asyncio.Task]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
