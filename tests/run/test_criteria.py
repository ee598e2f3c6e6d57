"""What a stage must show, and what is said of it."""

import json

import pytest

from gptjax.config import to_text
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.criteria import Criterion, checked, criteria_sentences
from gptjax.run.experiment import Experiment
from gptjax.run.report.recipe import write_report
from gptjax.run.tasks.lm import LmTask


def test_a_bound_counts_as_met():
    evaluation = {"a": 0.5, "b": 2, "c": float("nan"), "d": "1"}
    wanted = [("a", 0.5, None), ("a", None, 0.5), ("a", 0.51, None), ("a", 0.1, 0.4), ("b", 1, 3), ("c", 0, None)]
    wanted += [("d", 0, None), ("absent", 0, None)]
    criteria = [Criterion(figure=name, at_least=low, at_most=high) for name, low, high in wanted]
    found = checked(criteria, evaluation)
    assert [entry["met"] for entry in found] == [True, True, False, False, True, False, False, False]
    assert [entry["value"] for entry in found] == [0.5, 0.5, 0.5, 0.5, 2.0, None, None, None]
    assert found[3]["bounds"] == "at least 0.1 and at most 0.4"


def test_a_figure_may_lie_within_a_list_or_an_object():
    evaluation = {"ci": [0.1, 0.2], "by": {"kind": 3}}
    paths = ["ci.0", "by.kind", "ci.2", "ci.x", "by.kind.0"]
    found = checked([Criterion(figure=path, at_least=0) for path in paths], evaluation)
    assert [entry["value"] for entry in found] == [0.1, 3.0, None, None, None]


def test_a_criterion_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="criterion on 'x': give at_least, at_most or both"):
        Criterion(figure="x")


def test_criteria_are_part_of_the_settings():
    experiment = Experiment(
        task=LmTask(),
        model=ModelConfig(vocab_size=300, layers=1, width=8, heads=1),
        optimizer=OptimizerConfig(peak_lr=1.0),
        steps=1,
        batch_size=1,
        criteria=(Criterion(figure="bits_per_byte", at_most=2.5),),
    )
    assert "criteria.0.at_most = 2.5\n" in to_text(experiment)


def test_the_report_and_the_terminal_say_what_was_missed(tmp_path):
    criteria = [Criterion(figure="right", at_least=0.9), Criterion(figure="banned", at_most=0.01)]
    evaluation = {"right": 0.95, "banned": 0.25}
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "x", "stages": ["rung"]}))
    (tmp_path / "rung").mkdir()
    result = {"task": "grpo", "evaluation": evaluation, "criteria": checked(criteria, evaluation)}
    (tmp_path / "rung" / "result.json").write_text(json.dumps(result))
    shown = write_report(tmp_path).read_text()
    assert "Criteria</h2>" in shown
    assert all(word in shown for word in ("at most 0.01", ">0.25<", ">missed<", ">met<"))
    assert criteria_sentences(tmp_path, ["rung"]) == [
        "criteria: 1 of 2 met",
        "missed: rung: banned is 0.25, wanted at most 0.01",
    ]


def test_nothing_is_said_without_criteria(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("{}")
    assert criteria_sentences(tmp_path, ["a"]) == []
