"""Where a run's time goes: every moment belongs to one use, so the uses add up to the whole."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

Use = Literal["init", "restore", "compile", "data", "rollout", "step", "evaluate", "save", "lost"]
USES: tuple[Use, ...] = get_args(Use)


class Goodput:
    """Seconds by use; it begins with "init".

    init: reading data, building the model.  compile: first calls, which trace and compile.  data: waiting for a batch.
    save: the part of a save that keeps training waiting.  lost: steps made again after a restart or a rollback.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seconds: dict[str, float] = dict.fromkeys(USES, 0.0)
        self._use: Use = "init"
        self._since = clock()

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what earlier processes of the same run have used."""
        for use in USES:
            self._seconds[use] += seconds.get(use, 0.0)

    @contextmanager
    def __call__(self, use: Use) -> Iterator[None]:
        """Count the time inside as `use`, not as that of what is around it."""
        before = self._turn_to(use)
        try:
            yield
        finally:
            self._turn_to(before)

    def read(self) -> dict[str, float]:
        """Seconds by use, until now."""
        self._turn_to(self._use)
        return dict(self._seconds)

    def _turn_to(self, use: Use) -> Use:
        now = self._clock()
        self._seconds[self._use] += now - self._since
        self._since, before, self._use = now, self._use, use
        return before
