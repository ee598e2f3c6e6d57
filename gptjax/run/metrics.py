"""The log of a run: one JSON object per row in `metrics.jsonl`, the same numbers in TensorBoard."""

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.files import replacing
from gptjax.run.progress import note

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NON_FINITE = ("nan", "inf", "-inf")  # JSON has no such numbers: they are written as these strings


class MetricsLog:
    """Appends rows to `folder/metrics.jsonl` (flushed row by row) and to `folder/tensorboard`.

    Rows that a full disk does not take are kept until it does; TensorBoard then ends there.

    A float is written as the shortest text that reads back as the same float64, so every float32 survives exactly;
    nan, inf and -inf are written as the strings "nan", "inf" and "-inf", which `read_metrics` turns back.

    Args:
        folder: made when absent. An existing log is continued; call `resume` first to drop what a restore undid.
    """

    def __init__(self, folder: Path):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / "metrics.jsonl"
        self._purge_step: int | None = None
        self._writer: Any = None
        self._waiting = b""  # rows that a full disk has not taken yet
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            _rewrite(self._path, read_metrics(self._path))  # else the next row would join a half-written one
        self._file = self._path.open("ab", buffering=0)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one row.

        Args:
            step: updates made so far.
            metrics: scalars by name, Python numbers or arrays of one element.

        Raises:
            ValueError: a metric is not a scalar, or is called "step".
        """
        if "step" in metrics:
            raise ValueError('a metric is called "step", the name of the row\'s own counter: rename the metric')
        row = {name: _scalar(name, value) for name, value in metrics.items()}
        self._waiting += _line({"step": int(step)} | row).encode()
        self._write_waiting()
        with contextlib.suppress(OSError):
            self._write_events(int(step), row)

    def _write_waiting(self) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(self._waiting) == len(self._waiting):
                self._waiting = b""
                return
        except OSError as error:
            if error.errno not in _FULL:
                raise
        self._file.truncate(end)
        rows = self._waiting.count(b"\n")
        if rows in (1, 10, 100) or rows % 1000 == 0:
            note(f"the disk of {self._path} is full: {rows} rows wait until it has space")

    def _write_events(self, step: int, row: Mapping[str, int | float]) -> None:
        if self._writer is None:
            self._writer = _tensorboard(self._folder / "tensorboard", self._purge_step)
        elif not self._writer.file_writer.event_writer._worker.is_alive():
            return  # a full disk ended its thread, and its queue would block once it is full
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def resume(self, step: int) -> None:
        """Forget what came after a step, before going on from it.

        Args:
            step: the restored step; rows of later steps go, and so does a half-written last row.

        Raises:
            ValueError: a row that is not the last cannot be read.
        """
        self._file.close()
        self._waiting = b""
        _rewrite(self._path, [row for row in read_metrics(self._path) if row["step"] <= step])
        self._file = self._path.open("ab", buffering=0)
        self._close_writer()
        self._purge_step = step + 1

    def close(self) -> None:
        """Close both files; safe to call twice.

        Raises:
            OSError: the disk is still full, and rows are lost.
        """
        if self._waiting:
            self._file.write(self._waiting)
        self._file.close()
        self._close_writer()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close_writer(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None


class NoLog:
    """What a process writes that is not the first of its run: nothing."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Drop the row."""

    def resume(self, step: int) -> None:
        """There is nothing to forget."""

    def close(self) -> None:
        """There is nothing to close."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, numbers restored; a half-written last row is left out.

    Args:
        path: the file.

    Returns:
        One dict per row, with "step".

    Raises:
        ValueError: a row that is not the last is no JSON object with a "step".
    """
    lines = path.read_bytes().split(b"\n")
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    rows = []
    for i, line in enumerate(lines[: last + 1]):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif i != last:
            raise ValueError(f"{path}, line {i + 1}: not a row of metrics: {line[:60]!r}; repair or delete this line")
    return rows


def _scalar(name: str, value: Any) -> int | float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind in "OUSc":
        raise ValueError(f"metric {name!r} is not a number: it is {array.dtype} of shape {array.shape}")
    return int(array.item()) if array.dtype.kind in "biu" else float(array.item())


def _line(row: Mapping[str, int | float]) -> str:
    written = {k: v if math.isfinite(v) else repr(v) for k, v in row.items()}
    return json.dumps(written, allow_nan=False) + "\n"


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # bad JSON or bad UTF-8
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return {k: float(v) if v in _NON_FINITE else v for k, v in row.items()}


def _rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(map(_line, rows))


def _tensorboard(folder: Path, purge_step: int | None) -> Any:
    from tensorboardX import SummaryWriter

    # the file name holds whole seconds only: without a suffix a quick restart would overwrite its forerunner's file
    return SummaryWriter(str(folder), purge_step=purge_step, max_queue=10_000, filename_suffix=f".{time.time_ns()}")
