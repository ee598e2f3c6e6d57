"""The checkpoints that a whole recipe left: damage is seen in those of every stage, and any mesh reads them."""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax.run.checkpoint import Checkpoints
from gptjax.run.experiment import build_task, setup_of
from gptjax.run.load import load_recipe
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.tree import abstract, fingerprints

RECIPE = Path(__file__).parent / "tiny.py"
STAGES = ("lm", "sft", "reward", "ppo")


def abstract_state(recipe: Path, workdir: Path, stage: str, mesh):
    """What a checkpoint of the stage holds, laid out on a mesh."""
    experiment = load_recipe(str(recipe), []).stages[stage]
    setup = setup_of(experiment, folder=workdir / stage, mesh=mesh, stage_folder=lambda other: workdir / other)
    task = build_task(experiment, setup)
    return abstract(jax.jit(task.init)(jax.random.key(experiment.seed)))


def restored(folder: Path, wanted):
    checkpoints = Checkpoints(folder, keep=10)
    try:
        return checkpoints.restore(wanted)
    finally:
        checkpoints.close()


def damaged_loads(recipe: Path, workdir: Path, stage: str, flips: int, rng: random.Random) -> Counter:
    """How many damaged checkpoints were seen, were harmless, or gave wrong numbers."""
    counts: Counter = Counter({"seen": 0, "harmless": 0, "wrong": 0})
    folder = workdir / stage / "checkpoints"
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        wanted = abstract_state(recipe, workdir, stage, mesh)
        steps = sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True)
        good = {}
        for step in steps[:2]:
            only = workdir / "only"
            shutil.copytree(folder / str(step), only / str(step))
            good[step] = fingerprints(restored(only, wanted)[0])
            shutil.rmtree(only)
        for path in sorted(path for path in (folder / str(steps[0])).rglob("*") if path.is_file()):
            raw = path.read_bytes()
            flipped = [(rng.randrange(len(raw)), rng.randrange(8)) for _ in range(flips)] if raw else []
            bits = [raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :] for at, bit in flipped]
            for damaged in (raw[: len(raw) // 2], b"", None, *bits):
                trial = workdir / "trial"
                shutil.copytree(folder, trial)
                target = trial / path.relative_to(folder)
                target.unlink() if damaged is None else target.write_bytes(damaged)
                state = restored(trial, wanted)[0]
                same = fingerprints(state) == good[int(state.step)]
                counts["wrong" if not same else "harmless" if int(state.step) == steps[0] else "seen"] += 1
                shutil.rmtree(trial)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_damage_to_a_stages_checkpoint_is_seen_or_harmless(stage, runner, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "TINY_DATA", str(runner.folder / "data"))
    shutil.copytree(uninterrupted, tmp_path / "run")
    counts = damaged_loads(RECIPE, tmp_path / "run", stage, 2, random.Random(0))
    assert counts["wrong"] == 0
    assert counts["seen"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_mesh_reads_the_same_bits(stage, runner, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "TINY_DATA", str(runner.folder / "data"))
    shutil.copytree(uninterrupted, tmp_path / "run")
    marks = set()
    for axes in ({"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "tensor": 2}, {"data": 2, "context": 4}):
        mesh = make_mesh(MeshConfig(**axes), jax.devices()[: int(np.prod(list(axes.values())))])
        with jax.set_mesh(mesh):
            wanted = abstract_state(RECIPE, tmp_path / "run", stage, mesh)
            state, _ = restored(tmp_path / "run" / stage / "checkpoints", wanted)
            marks.add(tuple(fingerprints(state).items()))
    assert len(marks) == 1
