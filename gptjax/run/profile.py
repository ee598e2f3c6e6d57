"""A profile of some steps, for TensorBoard's profiler or Perfetto."""

from pathlib import Path
from typing import Any

import jax


class StepProfile:
    """Traces the steps `first` to `last` into `folder`; nothing if `steps` is None or the run has passed them.

    Args:
        steps: (first, last), counted from 1 as in the metrics.
        folder: made when the trace begins.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._steps, self._folder, self._tracing = steps, folder, False
        self._annotation: Any = None

    def begin(self, number: int) -> None:
        """Step `number` begins."""
        if self._steps is None or not self._steps[0] <= number <= self._steps[1]:
            return
        if not self._tracing:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        self._annotation = jax.profiler.StepTraceAnnotation("step", step_num=number)
        self._annotation.__enter__()

    def end(self, number: int, results: Any) -> None:
        """Step `number` was handed to the device; after the last one wait for its `results` and write the trace."""
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
        if self._tracing and self._steps is not None and number >= self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Write what was traced so far; safe to call twice."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
