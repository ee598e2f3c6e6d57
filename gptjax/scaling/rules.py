"""Batch size and learning rate as functions of size, data or compute: published rules and that of one's own runs."""

import math
from dataclasses import dataclass

from gptjax.scaling.runs import Runs


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A batch (tokens) and a peak learning rate, either of them None where the rule is silent, with its source."""

    rule: str
    batch_tokens: float | None
    peak_lr: float | None
    source: str


def own_rule(runs: Runs, d: float) -> Setting | None:
    """From one's own runs, if they have columns batch_tokens and peak_lr: B ~ D^.38, lr ~ B^.5.

    The reference is the run of lowest loss at the largest budget.

    Source: Bergsma et al. 2025, arXiv:2505.13738 (the exponent of B); Malladi et al. 2022, arXiv:2205.10287 (the root).
    """
    batch, rate = runs.values("batch_tokens"), runs.values("peak_lr")
    if batch is None or rate is None:
        return None
    largest = runs.budget == runs.budget.max()
    reference = min((i for i in range(len(runs)) if largest[i]), key=lambda i: runs.loss[i])
    scale = (d / runs.d[reference]) ** 0.38
    return Setting(
        rule="own runs",
        batch_tokens=float(batch[reference] * scale),
        peak_lr=float(rate[reference] * math.sqrt(scale)),
        source=f"{runs.names[reference]}, B x (D ratio)^.38, lr x (B ratio)^.5 at one width (or with muP)",
    )


def step_law(n: float, d: float) -> Setting:
    """Li et al. 2025, arXiv:2503.04715: N without embeddings."""
    return Setting(
        rule="Step Law",
        batch_tokens=0.58 * d**0.571,
        peak_lr=1.79 * n**-0.713 * d**0.307,
        source="arXiv:2503.04715",
    )


def deepseek_law(c: float) -> Setting:
    """Bi et al. 2024, arXiv:2401.02954, section 3.1: C as non-embedding FLOPs."""
    return Setting(
        rule="DeepSeek LLM",
        batch_tokens=0.2920 * c**0.3271,
        peak_lr=0.3118 * c**-0.1250,
        source="arXiv:2401.02954",
    )


def critical_batch(loss: float) -> Setting:
    """Kaplan et al. 2020, arXiv:2001.08361, section 5.1: the batch at which time and compute cost the same."""
    return Setting(
        rule="Kaplan critical batch", batch_tokens=2e8 / loss ** (1 / 0.21), peak_lr=None, source="arXiv:2001.08361"
    )  # fmt: skip
