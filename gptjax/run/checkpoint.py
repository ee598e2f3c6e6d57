"""The checkpoints of a run: save, go on from, fall back, keep.

A checkpoint has two parts: `model` (params, extra), which other runs start from, and `training` (everything else).
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from gptjax.run.hosts import first_says, on_first
from gptjax.run.progress import note
from gptjax.run.record import DamagedError, first_line, read_record, sealed_record
from gptjax.run.restore import verified
from gptjax.run.retention import Retention
from gptjax.tree import fingerprints
from gptjax.types import TrainState


def split(state: TrainState) -> dict[str, Any]:
    """The two parts of a checkpoint."""
    return {
        "model": {"params": state.params, "extra": state.extra},
        "training": {"step": state.step, "opt_state": state.opt_state, "key": state.key, "frozen": state.frozen},
    }


class Checkpoints:
    """Checkpoints of one run; saving happens in the background.

    Args:
        folder: theirs.
        keep: which are kept; a number means that many of the newest.
        failures: saves in a row that may fail before the run stops.
        pause: seconds before a last save is tried again, doubled each time.
    """

    def __init__(self, folder: Path, *, keep: int | Retention, failures: int = 5, pause: float = 1.0):
        self.folder = folder = folder.absolute()  # Orbax loads from relative paths and fails to save to them
        self._retention = keep if isinstance(keep, Retention) else Retention(newest=keep)
        self._limit, self._pause = failures, pause
        self._failures, self._saving = 0, None
        self._unseen: dict[int, str] = {}  # steps that Orbax cannot open, and why
        folder.mkdir(parents=True, exist_ok=True)
        self._checkpointer = self._open()

    def _open(self) -> Any:
        """Orbax's view of the folder. It does not open a folder in which any checkpoint has damaged metadata."""
        hidden = self.folder.with_name(f"{self.folder.name}.hidden")
        self._put_back(hidden)  # a crash came in between
        try:
            self._unseen = {}
            return self._opened(self.folder)
        except Exception:
            self._unseen = dict(self._unopenable())
            if not self._unseen:
                raise
        on_first(lambda: self._hide(hidden))
        try:
            return self._opened(self.folder)
        finally:
            self._put_back(hidden)

    def _opened(self, folder: Path) -> Any:
        policies: Any = ocp.training  # its own annotations disagree with each other
        return policies.Checkpointer(
            folder,
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_Preserved(self._retention, folder),
            cleanup_tmp_directories=True,
        )

    def _unopenable(self) -> Iterator[tuple[int, str]]:
        for path in self.folder.iterdir():
            if path.name.isdigit():
                with tempfile.TemporaryDirectory() as alone:
                    (Path(alone) / path.name).symlink_to(path)
                    try:
                        self._opened(Path(alone)).close()
                    except Exception as error:  # Orbax raises whatever the broken file provokes
                        yield int(path.name), f"_CHECKPOINT_METADATA: {first_line(error)}"

    def _hide(self, place: Path) -> None:
        place.mkdir(exist_ok=True)
        for step in self._unseen:
            (self.folder / str(step)).rename(place / str(step))

    def _put_back(self, place: Path) -> None:
        def move() -> None:
            for path in place.iterdir():
                path.rename(self.folder / path.name)
            place.rmdir()

        if first_says(place.exists()):
            on_first(move)

    def steps(self) -> list[int]:
        """Steps that were saved, oldest first."""
        return sorted({*(checkpoint.step for checkpoint in self._checkpointer.checkpoints), *self._unseen})

    def save(self, state: TrainState, step: int, about: dict[str, Any], *, score: float | None = None) -> None:
        """Begin to write a checkpoint; returns once the arrays are copied, so the state may be donated.

        A save that fails, here or in the background, is reported on stderr and counted; the last good one stays.

        Args:
            state: what to save.
            step: updates made so far; a checkpoint of this step that holds something else is replaced.
            about: what else a resume needs, as JSON.
            score: how good this state is, for retention; higher is better.

        Raises:
            ValueError: too many saves in a row have failed.
        """
        self.wait()
        record = sealed_record(about, fingerprints(split(state)), score)
        with contextlib.suppress(DamagedError):
            if step in self.steps() and read_record(self.folder / str(step))["fingerprints"] == record["fingerprints"]:
                return
        try:
            self._checkpointer.save_checkpointables_async(
                step,
                split(state),
                overwrite=step in self.steps(),
                custom_metadata=record,
            )
            self._saving = step
        except Exception as error:  # Orbax raises whatever the file system provokes
            self._failed(step, error)

    def save_now(self, state: TrainState, step: int, about: dict[str, Any], *, score: float | None = None) -> None:
        """Write a checkpoint and wait until it is on disk; try again if that fails.

        Raises:
            ValueError: too many saves in a row have failed.
        """
        for attempt in range(self._limit + 1):
            self.save(state, step, about, score=score)
            self.wait()
            if step in self.steps():
                return
            time.sleep(self._pause * 2**attempt)

    def wait(self) -> None:
        """Block until the save under way has ended, well or badly.

        Raises:
            ValueError: too many saves in a row have failed.
        """
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            self._checkpointer.wait()
        except Exception as error:
            self._failed(step, error)
        else:
            self._failures = 0

    def _failed(self, step: int, error: Exception) -> None:
        """After a failed save Orbax's own state is wrong, the disk is not: start anew from the disk."""
        self._failures += 1
        self._reopen()
        good = f"that of step {self.steps()[-1]} is the newest" if self.steps() else "there is none yet"
        text = f"the checkpoint of step {step} could not be saved ({first_line(error)}); {good}"
        if self._failures >= self._limit:
            raise ValueError(
                f"{text}. {self._failures} saves in a row have failed: make {self.folder} writable, with space for a "
                "checkpoint more than are kept, and run the same command again"
            ) from error
        note(f"{text}; training goes on (failure {self._failures} of {self._limit} in a row)")

    def _reopen(self) -> None:
        with contextlib.suppress(Exception):
            self._checkpointer.close()
        self._checkpointer = self._open()

    def restore(
        self, abstract_state: TrainState, *, before: int | None = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state that is bit for bit what was saved, in the given layout, and what was said about it.

        Checkpoints that are passed over, being damaged or not older than `before`, are renamed, so that the run can go
        on from the older one; nothing is deleted.

        Args:
            abstract_state: shapes, dtypes and shardings.
            before: look only at checkpoints of earlier steps.

        Returns:
            None without any checkpoint.

        Raises:
            ValueError: there are checkpoints, but none can be read, or the newest one is of another model or from a
                newer version of gptjax.
        """
        self.wait()
        damaged: dict[int, str] = {}
        later = [step for step in self.steps() if before is not None and step >= before]
        for step in reversed([step for step in self.steps() if step not in later]):
            try:
                if step in self._unseen:
                    raise DamagedError(self._unseen[step])
                parts, about = verified(self.folder / str(step), split(abstract_state))
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            for bad, why in damaged.items():
                note(
                    f"the checkpoint of step {bad} is damaged ({why}): going on from step {step}; "
                    f"it is kept as {self._set_aside(bad, 'damaged')}"
                )
            for bad in later:
                self._set_aside(bad, "undone")
            return TrainState(**parts["model"], **parts["training"]), about
        if damaged:
            listed = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
            raise ValueError(
                f"none of the checkpoints in {self.folder} can be read ({listed}); nothing was deleted: "
                "repair them, or choose another --workdir"
            )
        return None

    def _set_aside(self, step: int, why: str) -> str:
        """Rename a checkpoint so that Orbax does not see it; returns the new name."""
        names = (f"{step}.{why}{number or ''}" for number in range(1000))
        name = next(name for name in names if not (self.folder / name).exists())
        on_first(lambda: (self.folder / str(step)).rename(self.folder / name))
        self._reopen()
        return name

    def close(self) -> None:
        """Wait for the save under way and release threads."""
        self.wait()
        self._checkpointer.close()


class _Preserved:
    """Orbax's view of a Retention."""

    def __init__(self, retention: Retention, folder: Path):
        self._retention, self._folder = retention, folder

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        score = self._score if self._retention.best else lambda step: None  # a record is a file to read
        kept = self._retention.kept({info.step: score(info.step) for info in checkpoints})
        return [info.step in kept for info in checkpoints]

    def _score(self, step: int) -> float | None:
        try:
            return read_record(self._folder / str(step))["score"]
        except (DamagedError, ValueError):
            return None
