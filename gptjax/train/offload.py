"""The optimizer's state in the hosts' memory between updates, whatever the step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gptjax.memory import on_host
from gptjax.types import Metrics, TrainState

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def parked(state: TrainState) -> TrainState:
    """The state with the optimizer's arrays in pinned host memory."""
    return replace(state, opt_state=on_host(state.opt_state))


def parking(step: Step) -> Step:
    """The step, of a state that is parked before and after: `gptjax.train.update.advance` fetches what it needs."""

    def stepped(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, batch)
        return parked(after), metrics

    return stepped
