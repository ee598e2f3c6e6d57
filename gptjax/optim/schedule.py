"""Learning-rate schedules by name."""

from typing import Literal

import optax

ScheduleName = Literal["constant", "linear", "cosine", "wsd"]


def schedule(
    name: ScheduleName,
    *,
    peak: float,
    steps: int,
    warmup_steps: int,
    start_fraction: float,
    final_fraction: float,
    decay_fraction: float = 0.2,
) -> optax.Schedule:
    """Linear warm-up from `start_fraction` of the peak, then one of four shapes down to `final_fraction` of it.

    Args:
        name: constant; linear or cosine decay over all remaining steps; wsd: constant, then linear over the end.
        peak: largest learning rate.
        steps: length of the run.
        warmup_steps: steps from the start to the peak.
        start_fraction: learning rate of step 0 over the peak (without warm-up it is the peak).
        final_fraction: learning rate of step `steps` over the peak.
        decay_fraction: of wsd, share of the steps over which it falls.

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
        decay = decay_steps(steps, decay_fraction)
        tail = optax.linear_schedule(peak, peak * final_fraction, decay, transition_begin=max(0, rest - decay))
    if warmup_steps == 0:
        return tail
    warmup = optax.linear_schedule(peak * start_fraction, peak, warmup_steps)
    return optax.join_schedules([warmup, tail], [warmup_steps])


def decay_steps(steps: int, decay_fraction: float) -> int:
    """Steps at the end of a wsd run over which the learning rate falls; before them it does not depend on `steps`."""
    return max(1, int(steps * decay_fraction + 1e-9))
