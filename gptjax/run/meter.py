"""Throughput of a run: tokens and model FLOPs a second, between two readings."""

import time
from collections.abc import Callable


class Meter:
    """Throughput between two readings.

    Args:
        flops_per_token: model FLOPs of a step over its tokens; None: no model FLOP/s, no MFU.
        peak_flops: FLOP/s of all devices together; None: unknown devices, no MFU.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._flops_per_token, self._peak_flops, self._clock = flops_per_token, peak_flops, clock
        self.restart()

    def restart(self) -> None:
        """Begin a new window now: after compiling, evaluating, saving or restoring, whose time is not the steps'."""
        self._began = self._clock()
        self._tokens = 0
        self._steps = 0

    def step(self, tokens: int) -> None:
        """Count one step.

        Args:
            tokens: tokens that the step processed, over all devices.
        """
        self._steps += 1
        self._tokens += int(tokens)

    def read(self) -> dict[str, float]:
        """The window's figures; begins the next window. Empty when the window has no step."""
        seconds = self._clock() - self._began
        figures = {}
        if self._steps and seconds > 0:
            figures["perf/tokens_per_second"] = self._tokens / seconds
            figures["perf/seconds_per_step"] = seconds / self._steps
            if self._flops_per_token is not None:
                figures["perf/model_flops_per_second"] = self._tokens * self._flops_per_token / seconds
                if self._peak_flops is not None:
                    figures["perf/mfu"] = figures["perf/model_flops_per_second"] / self._peak_flops
        self.restart()
        return figures
