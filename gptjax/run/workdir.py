"""The folder of a run: whose it is."""

import json
from dataclasses import asdict
from pathlib import Path

from gptjax.config import to_text
from gptjax.files import write_atomically
from gptjax.run.experiment import Recipe

# what may change between an interrupted run and the call that goes on with it: the losses stay the same
_MAY_CHANGE = ("mesh.", "save_every", "keep", "faults.", "profile", "optimizer.offload")


def claim(recipe: Recipe, workdir: Path, environment: dict[str, str]) -> None:
    """Write what a run is into its folder, or see that the folder holds this very run.

    Raises:
        ValueError: the folder belongs to another experiment, or holds something else.
    """
    identity = workdir / "recipe.json"
    if identity.exists():
        _check_same(recipe, workdir)
    elif workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run: choose another --workdir")
    about = {"name": recipe.name, "stages": list(recipe.stages)} | environment
    write_atomically(identity, json.dumps(about, indent=1))  # first: killed here, the folder is still this run's
    for name, experiment in recipe.stages.items():
        write_atomically(workdir / name / "config.txt", to_text(experiment))
        write_atomically(workdir / name / "model.json", json.dumps(asdict(experiment.model), indent=1))


def _check_same(recipe: Recipe, workdir: Path) -> None:
    theirs = json.loads((workdir / "recipe.json").read_text(encoding="utf-8"))
    if theirs["stages"] != list(recipe.stages):
        raise ValueError(
            f"{workdir} holds the run {theirs['name']!r} with stages {', '.join(theirs['stages'])}, not "
            f"{recipe.name!r} with {', '.join(recipe.stages)}: choose another --workdir"
        )
    for name, experiment in recipe.stages.items():
        path = workdir / name / "config.txt"
        if not _has_begun(workdir / name):
            continue
        before, now = _settings(path.read_text(encoding="utf-8")), _settings(to_text(experiment))
        changed = [
            f"{name}.{key}: {before.get(key, 'absent')} in the folder, {now.get(key, 'absent')} now"
            for key in {**before, **now}
            if before.get(key) != now.get(key) and not key.startswith(_MAY_CHANGE)
        ]
        if changed:
            raise ValueError(
                f"{workdir} holds a run with other settings ({'; '.join(changed[:5])}): "
                "choose another --workdir, or give the same settings to go on with it"
            )


def _has_begun(stage: Path) -> bool:
    """Whether a stage left more than its settings; until then they may still be mended."""
    return any((stage / name).exists() for name in ("tokenizer.model", "data", "checkpoints", "metrics.jsonl"))


def _settings(text: str) -> dict[str, str]:
    pairs = (line.partition(" = ") for line in text.splitlines() if " = " in line)
    return {key: value for key, _, value in pairs}
