"""Stopping when asked to: SIGTERM and Ctrl-C are remembered until the run is at a point where it can be saved."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from gptjax.run.exits import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """While entered, the first SIGTERM or SIGINT asks to stop at the next safe point; a second ends the process.

    With several processes JAX's own listener has SIGTERM, and all of them stop after the same step, whichever of them
    was asked.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._interruptible = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def asked(self, step: int) -> bool:
        """Whether to stop after `step` updates; every process asks after the same steps and gets the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked is not None

    def check(self) -> None:
        """Raise Preempted if a signal came to this process, which is alone."""
        if self._asked is not None:
            raise Preempted(self.reason)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around what can be broken off anywhere without loss, such as an evaluation: a request raises Preempted."""
        self.check()
        before, self._interruptible = self._interruptible, True
        try:
            yield
        except Exception:
            self.check()  # a library has made an error of its own out of what the handler raised
            raise
        finally:
            self._interruptible = before

    @property
    def reason(self) -> str:
        """Why the run stops."""
        return "preemption" if self._asked is None else signal.Signals(self._asked).name

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            os._exit(128 + number)
        self._asked = number
        text = f"\n{self.reason}: saving at the next safe point, then stopping; once more stops at once\n"
        os.write(2, text.encode())  # print is not safe where another print may have been interrupted
        if self._interruptible:
            raise Preempted(self.reason)
