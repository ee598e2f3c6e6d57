"""A stage of a few seconds, trained by the real loop without the report that a run ends with."""

import json
from contextlib import closing

import jax

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.experiment import Experiment, build_task, setup_of
from gptjax.run.goodput import Goodput
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.run.metrics import MetricsLog, read_metrics
from gptjax.run.stop import Stop
from gptjax.run.tasks.lm import LmTask
from gptjax.run.training import Training


def tiny(folder, **changes):
    """Pre-training on the bytes of sixty lines, on two devices."""
    corpus = folder / "corpus.jsonl"
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    corpus.write_text("".join(json.dumps({"text": f"{number} {text}"}) + "\n" for number in range(60)))
    settings = {
        "task": LmTask(corpus=corpus, row_tokens=32, heldout_fraction=0.2, byte_tokens=True, samples=0),
        "model": ModelConfig(vocab_size=256, layers=2, width=16, heads=2, hidden=16, max_length=32),
        "optimizer": OptimizerConfig(peak_lr=1e-3),
        "mesh": MeshConfig(data=1, fsdp=2),
        "steps": 6,
        "batch_size": 8,
        "save_every": 2,
        "keep": 9,
    }
    return Experiment(**settings | changes)


def trained(experiment, folder):
    """What is logged, row by row."""
    mesh = make_mesh(experiment.mesh, jax.devices()[:2])
    with jax.set_mesh(mesh):
        setup = setup_of(experiment, folder=folder, mesh=mesh, stage_folder=lambda name: folder)
        run_stage(folder, build_task(experiment, setup), experiment)
    return read_metrics(folder / "metrics.jsonl")


def run_stage(folder, task, experiment, log_class=MetricsLog, trunk=None):
    """(final state, what the result says)."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=experiment.keep, pause=0.0)
    with closing(checkpoints), closing(log_class(folder)) as log, Stop() as stop:
        return Training("toy", experiment, task, checkpoints, log, stop, Goodput(), trunk).run()
