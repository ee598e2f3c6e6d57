"""What a person sees of long work: a progress bar or plain lines on stderr; tables of results."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_muted = False


def mute() -> None:
    """Show nothing any more: another process of the same run speaks for all."""
    global _muted
    _muted = True


class Progress:
    """A progress bar on stderr; where stderr is no terminal, one plain line now and then and a last one at the end.

    Args:
        description: what is going on, such as "lm".
        total: steps in all.
        start: steps already done before this process.
        every: seconds between plain lines.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        description: str,
        total: int,
        *,
        start: int = 0,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._description, self._total, self._every, self._clock = description, total, every, clock
        self._step = start
        self._text = ""
        self._first: tuple[int, float] | None = None  # step and time of the first update: compiling came before
        self._printed: tuple[int, float] | None = None  # likewise of the last plain line
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty() and not _muted:
            self._bar, self._task = _bar(self._description, self._total, self._step)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._first is not None and (self._printed is None or self._printed[0] != self._step):
            self._print(self._clock())

    def update(
        self, step: int, *, loss: float | None = None, name: str = "loss", tokens_per_second: float | None = None
    ) -> None:
        """Show where the work is; cheap enough for every step.

        Args:
            step: steps done so far.
            loss: the current loss (the unit of the task), or another figure that tells how it goes.
            name: what that figure is called.
            tokens_per_second: throughput.
        """
        now = self._clock()
        self._first = self._first or (step, now)
        self._step = step
        parts = [f"{name} {loss:.4g}"] if loss is not None else []
        parts += [f"{tokens_per_second:,.0f} tokens/s"] if tokens_per_second is not None else []
        left = self._seconds_left(now)
        parts += [f"{duration(left)} left"] if left is not None else []
        self._text = ", ".join(parts)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self._text)
        elif self._printed is None or now - self._printed[1] >= self._every:
            self._print(now)

    def _seconds_left(self, now: float) -> float | None:
        first_step, began = self._first or (self._step, now)
        if self._step <= first_step or self._step >= self._total:
            return None
        return (now - began) / (self._step - first_step) * (self._total - self._step)

    def _print(self, now: float) -> None:
        self._printed = (self._step, now)
        note(f"{self._description} {self._step}/{self._total} {self._text}".rstrip())


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on stdout; columns in which every cell is a number or empty are aligned to the right.

    It is as wide as the terminal or, where there is none, as it needs to be.

    Args:
        title: printed above.
        columns: headings.
        rows: cells by row; floats are shown to four digits, None as an empty cell.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """
    from rich import box, console, text
    from rich import table as rich_table

    for i, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"table {title!r}, row {i}: {len(row)} cells for {len(columns)} columns")
    shown = rich_table.Table(title=text.Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        numeric = all(row[i] is None or isinstance(row[i], int | float) for row in rows)
        shown.add_column(text.Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(text.Text(_cell(value)) for value in row))
    console.Console(width=None if sys.stdout.isatty() else 10_000, highlight=False).print(shown)


def duration(seconds: float) -> str:
    """A length of time for people: "42 s", "3 min 05 s", "2 h 07 min", "3 d 04 h"."""
    whole = round(seconds)
    for big, small, size, unit in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size} {big} {whole % size // unit:02d} {small}"
    return f"{whole} s"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bar(description: str, total: int, start: int) -> tuple[Any, Any]:
    from rich import console, progress

    bar = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[text]}", markup=False),
        console=console.Console(stderr=True),
    )
    return bar, bar.add_task(description, total=total, completed=start, text="")


@contextmanager
def status(text: str) -> Iterator[None]:
    """Say on stderr what is going on while it goes on; a spinner where stderr is a terminal, else one line."""
    if _muted or not sys.stderr.isatty():
        note(text)
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def note(text: str) -> None:
    """Say something on stderr that a person should know, such as what was left out of the data."""
    if not _muted:
        print(text, file=sys.stderr, flush=True)
