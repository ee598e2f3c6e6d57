"""Whose folder it is: the same run goes on, another is refused, a start that failed can be mended."""

from dataclasses import replace

import pytest

from gptjax.files import write_atomically
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run import workdir
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.lm import LmTask
from gptjax.run.workdir import claim


def recipe(**changes) -> Recipe:
    experiment = Experiment(
        task=LmTask(),
        model=ModelConfig(vocab_size=300, layers=1, width=8, heads=2),
        optimizer=OptimizerConfig(peak_lr=1e-3),
        steps=10,
        batch_size=4,
    )
    return Recipe(name="r", stages={"lm": replace(experiment, **changes)})


def test_the_same_run_goes_on_also_on_another_mesh(tmp_path):
    claim(recipe(), tmp_path / "run", {})
    (tmp_path / "run" / "lm" / "tokenizer.model").touch()
    claim(recipe(mesh=MeshConfig(fsdp=2), save_every=3), tmp_path / "run", {})


def test_other_settings_are_refused_with_both_values(tmp_path):
    claim(recipe(), tmp_path / "run", {})
    (tmp_path / "run" / "lm" / "tokenizer.model").touch()
    with pytest.raises(ValueError, match=r"lm\.steps: 10 in the folder, 20 now"):
        claim(recipe(steps=20), tmp_path / "run", {})
    assert "steps = 10" in (tmp_path / "run" / "lm" / "config.txt").read_text()


def test_settings_of_a_stage_that_has_not_begun_may_be_mended(tmp_path):
    claim(recipe(), tmp_path / "run", {})
    claim(recipe(steps=20), tmp_path / "run", {})
    assert "steps = 20" in (tmp_path / "run" / "lm" / "config.txt").read_text()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        claim(recipe(), tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("files", [1, 2, 3])
def test_killed_between_its_files_it_goes_on(files, tmp_path, monkeypatch):
    written = []

    def dying(path, text):
        write_atomically(path, text)
        written.append(path)
        if len(written) == files:
            raise KeyboardInterrupt

    monkeypatch.setattr(workdir, "write_atomically", dying)
    with pytest.raises(KeyboardInterrupt):
        claim(recipe(), tmp_path / "run", {})
    claim(recipe(), tmp_path / "run", {})
    assert {path.name for path in (tmp_path / "run").rglob("*.*")} == {"recipe.json", "config.txt", "model.json"}
