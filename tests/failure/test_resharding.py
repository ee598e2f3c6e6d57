"""A run that goes on with another mesh: the same numbers within rounding, in every stage."""

import json
import signal

import pytest
from moments import STAGES, stepping

from gptjax.run.metrics import read_metrics

MESH = ("--devices", "8", "--mesh.fsdp", "2", "--mesh.tensor", "2")
LOSSES = {"lm": "lm/nats_per_token", "sft": "sft/nats_per_token", "reward": "reward/loss", "ppo": "ppo/value_loss"}


@pytest.mark.slow
def test_every_stage_goes_on_with_eight_devices(runner, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    for stage in STAGES:  # each stage begins on one device and ends on eight
        runner.stop_when(workdir, stepping(workdir / stage), signal.SIGTERM)
        if stage != "ppo":
            following = STAGES[STAGES.index(stage) + 1]
            runner.stop_when(
                workdir, lambda next=following: (workdir / next).joinpath("checkpoints").exists(), signal.SIGTERM, *MESH
            )
    runner.finish(workdir, *MESH)
    for stage in STAGES:
        ours, theirs = (
            [row[LOSSES[stage]] for row in read_metrics(run / stage / "metrics.jsonl") if LOSSES[stage] in row]
            for run in (workdir, uninterrupted)
        )
        assert len(ours) == len(theirs)
        assert ours == pytest.approx(theirs, rel=1e-5 if stage == "lm" else 1e-4), stage
        assert json.loads((workdir / stage / "result.json").read_text())["task"]
