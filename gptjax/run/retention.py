"""Which checkpoints of a run are kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept; everything else goes once a newer checkpoint is whole.

    newest: how many of the newest, at least 1.  best: how many with the highest score, counted among those that have
    a finite one; of equal scores the newer ones.  every: steps that are multiples of it are kept for ever (None: none).
    """

    newest: int
    best: int = 0
    every: int | None = None

    def kept(self, scores: Mapping[int, float | None]) -> set[int]:
        """The steps to keep, the newest always among them.

        Args:
            scores: of each step, higher is better; None where there is none.
        """
        newest = sorted(scores)[-self.newest :]
        ranked = sorted((score, step) for step, score in scores.items() if score is not None and math.isfinite(score))
        best = [step for _, step in ranked[max(0, len(ranked) - self.best) :]]
        marked = [step for step in scores if self.every is not None and step % self.every == 0]
        return {*newest, *best, *marked}
