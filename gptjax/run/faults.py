"""What a run does when its numbers go wrong: when to go back, and how a step is checked by repeating it."""

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptjax.choices import check_numbers
from gptjax.run.exits import NumericalFaultError
from gptjax.tree import fingerprints

_WINDOW = 128
_ENOUGH = 32  # losses before one of them can be called a spike


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What a run does when something goes wrong; an update that is not finite is left out in any case.

    bad_steps: so many updates in a row that were left out, or had a spike for a loss, make the run go back to the
    checkpoint before them and pass over the batches in between.  spike_deviations: a loss that many robust standard
    deviations above the median of the last 128 is a spike (None: no loss is; scores never are).
    rollbacks: how often it may go back; then it stops with exit code 70.
    replay_every: steps between two that are made twice and compared bit for bit, which finds faulty hardware (None:
    never); it takes the memory of two more states.
    stall_seconds: a step that takes longer ends the process (None: the longer of 10 minutes and 50 median steps).
    failed_saves: so many saves in a row that fail stop the run.
    """

    bad_steps: int = 5
    spike_deviations: float | None = None
    rollbacks: int = 2
    replay_every: int | None = None
    stall_seconds: float | None = None
    failed_saves: int = 5

    def __post_init__(self) -> None:
        counts = ("bad_steps", "failed_saves", "replay_every")
        sizes = ("spike_deviations", "stall_seconds")
        check_numbers(self, "faults", at_least_1=counts, not_negative=("rollbacks",), positive=sizes)


class LossWatch:
    """Looks at every step's loss and says when it is time to go back.

    Args:
        bad_steps: bad ones in a row.
        spike_deviations: what a spike is; None: only an update that was left out is bad.
    """

    def __init__(self, bad_steps: int, spike_deviations: float | None):
        self._bad_steps, self._deviations = bad_steps, spike_deviations
        self._window: deque[float] = deque(maxlen=_WINDOW)
        self._first: int | None = None

    def see(self, step: int, loss: float, *, skipped: bool) -> int | None:
        """The first of the bad steps if there are enough of them in a row, else None.

        Args:
            step: updates made so far, this one included.
            loss: of this step.
            skipped: whether the update was left out.
        """
        if not (skipped or not math.isfinite(loss) or self.is_spike(loss)):
            self._window.append(loss)
            self._first = None
            return None
        self._first = step if self._first is None else self._first
        return self._first if step - self._first + 1 >= self._bad_steps else None

    def is_spike(self, loss: float) -> bool:
        """Whether a loss stands out; robustly, for the spread of losses is itself shaken by spikes."""
        if self._deviations is None or len(self._window) < _ENOUGH:
            return False
        median = statistics.median(self._window)
        spread = 1.4826 * statistics.median(abs(x - median) for x in self._window)
        return loss > median + self._deviations * max(spread, 1e-6 * abs(median))


def repeated(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, batch: Any, number: int) -> tuple[Any, Any]:
    """What a step gives, made twice.

    Args:
        step: (state, batch) -> (state, metrics); it donates nothing.
        state: before the step.
        batch: of the step.
        number: of the step, for the message.

    Raises:
        NumericalFaultError: the two results differ in a bit; the message names the first array.
    """
    first, again = step(state, batch), step(state, batch)
    marks, marks_again = fingerprints(first), fingerprints(again)
    differing = [name for name, mark in marks.items() if marks_again[name] != mark]
    if differing:
        raise NumericalFaultError(
            f"step {number}, made twice on the same numbers, gave two results ({len(differing)} arrays differ, such as "
            f"{differing[0]}): a device computes wrongly, or the step is not deterministic here. Checkpoints from "
            "before this step may be wrong too; run this on other hardware"
        )
    return first
