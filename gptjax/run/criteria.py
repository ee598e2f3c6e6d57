"""What a stage must show when it is finished, and whether it does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.run.report.series import number


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A bound on one figure of a finished stage.

    figure: its name in the stage's result.json, under evaluation; of lists and objects, a part
    after a dot, as in gold_gain_ci.0.
    at_least, at_most: bounds, both included.
    """

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"criterion on {self.figure!r}: give at_least, at_most or both")

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        parts = [f"at least {self.at_least:g}"] if self.at_least is not None else []
        return " and ".join(parts + ([f"at most {self.at_most:g}"] if self.at_most is not None else []))


def checked(criteria: Sequence[Criterion], evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each criterion: figure, bounds, value and whether it is met; a figure that is absent or no number is not."""
    found = []
    for criterion in criteria:
        value = number(_figure(evaluation, criterion.figure))
        low, high = criterion.at_least, criterion.at_most
        met = value is not None and (low is None or value >= low) and (high is None or value <= high)
        found.append({"figure": criterion.figure, "bounds": criterion.bounds, "value": value, "met": met})
    return found


def _figure(evaluation: Any, name: str) -> Any:
    """The value at a path of names and places, or None."""
    for part in name.split("."):
        if isinstance(evaluation, Mapping):
            evaluation = evaluation.get(part)
        elif isinstance(evaluation, list) and part.isdigit() and int(part) < len(evaluation):
            evaluation = evaluation[int(part)]
        else:
            return None
    return evaluation


def criteria_sentences(workdir: Path, stages: Sequence[str]) -> list[str]:
    """How many criteria of a finished run are met, and those that are not; nothing without criteria."""
    results = {stage: json.loads((workdir / stage / "result.json").read_text(encoding="utf-8")) for stage in stages}
    found = [(stage, entry) for stage, result in results.items() for entry in result.get("criteria", [])]
    missed = [
        f"missed: {stage}: {entry['figure']} is {entry['value']}, wanted {entry['bounds']}"
        for stage, entry in found
        if not entry["met"]
    ]
    return [f"criteria: {len(found) - len(missed)} of {len(found)} met", *missed] if found else []
