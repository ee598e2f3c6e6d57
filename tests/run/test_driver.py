"""The driver around stages that are over at once: when the report is drawn, and what is closed."""

import errno
from types import SimpleNamespace

import pytest

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run import driver
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.metrics import MetricsLog
from gptjax.run.tasks.lm import LmTask


@pytest.fixture
def recipe(monkeypatch):
    """Two stages that train nothing."""
    state = SimpleNamespace(params={}, opt_state={})
    monkeypatch.setattr(driver, "setup_of", lambda *_, **options: None)
    monkeypatch.setattr(driver, "build_task", lambda *_: SimpleNamespace(data_fingerprint=""))
    monkeypatch.setattr(driver, "Training", lambda *_: SimpleNamespace(run=lambda: (state, {"evaluation": {}})))
    model = ModelConfig(vocab_size=300, layers=1, width=8, heads=2)
    stage = Experiment(task=LmTask(), model=model, optimizer=OptimizerConfig(peak_lr=1e-3), steps=1, batch_size=8)
    return Recipe(name="r", stages={"one": stage, "two": stage})


def test_the_report_is_drawn_once_a_stage_and_again_of_a_finished_run(recipe, tmp_path, monkeypatch):
    finished = []
    monkeypatch.setattr(driver, "write_report", lambda folder: finished.append(len([*folder.glob("*/result.json")])))
    driver.run(recipe, tmp_path / "run")
    assert finished == [1, 2]
    driver.run(recipe, tmp_path / "run")
    assert finished == [1, 2, 2]


def test_a_log_that_cannot_be_closed_does_not_keep_the_checkpoints_open(recipe, tmp_path, monkeypatch):
    closed = []

    def closing(kind, error=None):
        def close(self):
            closed.append(kind)
            real(self)
            if error is not None:
                raise error

        real = kind.close
        monkeypatch.setattr(kind, "close", close)

    closing(MetricsLog, OSError(errno.ENOSPC, "no space"))
    closing(Checkpoints)
    with pytest.raises(OSError, match="no space"):
        driver.train(recipe, tmp_path / "run")
    assert closed == [MetricsLog, Checkpoints]
