"""Learning-rate schedules by name."""

from typing import Literal

import optax

ScheduleName = Literal["constant", "linear", "cosine", "wsd"]


def schedule(
    name: ScheduleName, *, peak: float, steps: int, warmup_steps: int, start_fraction: float, final_fraction: float
) -> optax.Schedule:
    """Linear warm-up from `start_fraction` of the peak, then one of four shapes down to `final_fraction` of it.

    Args:
        name: constant; linear or cosine decay over all remaining steps; wsd: constant, then linear over the last fifth.
        peak: largest learning rate.
        steps: length of the run.
        warmup_steps: steps from the start to the peak.
        start_fraction: learning rate of step 0 over the peak (without warm-up it is the peak).
        final_fraction: learning rate of step `steps` over the peak.

    Returns:
        step -> learning rate.
    """
    rest = max(1, steps - warmup_steps)
    if name == "constant":
        tail = optax.constant_schedule(peak)
    elif name == "cosine":
        tail = optax.cosine_decay_schedule(peak, rest, alpha=final_fraction)
    elif name == "linear":
        tail = optax.linear_schedule(peak, peak * final_fraction, rest)
    else:
        decay = max(1, steps // 5)
        tail = optax.linear_schedule(peak, peak * final_fraction, decay, transition_begin=max(0, rest - decay))
    if warmup_steps == 0:
        return tail
    warmup = optax.linear_schedule(peak * start_fraction, peak, warmup_steps)
    return optax.join_schedules([warmup, tail], [warmup_steps])
