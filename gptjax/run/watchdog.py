"""The watchdog: a run that makes no progress prints the stacks of all threads and ends, so that it can be restarted."""

import faulthandler
import statistics
import time
from collections import deque
from collections.abc import Callable

_STDERR = 2
_LEAST_SECONDS = 600.0
_STEPS = 50  # as many median steps


class Watchdog:
    """Ends the process with exit code 1 when `heard` is not called for too long, even while the GIL is held.

    Args:
        seconds: how long; None: the longer of 10 minutes and 50 median steps.
        clock: seconds, for tests.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic):
        self._fixed, self._clock = seconds, clock
        self._times: deque[float] = deque(maxlen=100)
        self._last: float | None = None
        self._armed: float | None = None

    def seconds(self) -> float:
        """How long may pass without a word."""
        if self._fixed is not None:
            return self._fixed
        return max(_LEAST_SECONDS, _STEPS * statistics.median(self._times)) if self._times else _LEAST_SECONDS

    def heard(self) -> None:
        """A step is done. Begins to watch, or begins anew."""
        now = self._clock()
        if self._last is not None:
            self._times.append(now - self._last)
        self._last = now
        limit = self.seconds()
        if self._armed is None or now - self._armed >= min(1.0, limit / 10):  # each time starts a thread
            faulthandler.dump_traceback_later(limit, exit=True, file=_STDERR)
            self._armed = now

    def rest(self) -> None:
        """Stop watching until the next step is done: something of unknown length comes, such as compiling."""
        faulthandler.cancel_dump_traceback_later()
        self._last = self._armed = None
