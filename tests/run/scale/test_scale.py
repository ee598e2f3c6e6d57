"""The commands on a table: JSON that a program can read, a report with every figure and its data, mistakes named."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from gptjax import cli
from gptjax.run.scale import command
from gptjax.scaling.fit import FitConfig
from gptjax.scaling.isoflop import PowerLaw
from gptjax.scaling.law import Law
from gptjax.scaling.runs import read_runs

LAW = Law(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    rng = np.random.default_rng(0)
    lines = []
    for i, c in enumerate(np.repeat(1e18 * 4.0 ** np.arange(4), 5)):
        n = LAW.optimum(c)[0] * 2.0 ** (i % 5 - 2)
        loss = LAW.loss(n, c / 6 / n) * np.exp(0.002 * rng.normal())
        lines.append(json.dumps({"run": f"r{i}", "n_params": n, "n_tokens": c / 6 / n, "flops": c, "loss": loss}))
    Path("runs.jsonl").write_text("\n".join(lines))
    return "runs.jsonl"


def shown(capsys, *argv):
    cli.main(["scale", *argv, "--draws", "60", "--json"])
    return json.loads(capsys.readouterr().out)


def test_fit_prints_the_law_and_writes_a_report(table, capsys):
    found = shown(capsys, "fit", table, "--report", "report")
    assert found["law"]["alpha"] == pytest.approx(0.34, abs=0.05)
    assert found["intervals_95"]["alpha"][0] < 0.34 < found["intervals_95"]["alpha"][1]
    assert found["runs"] == 20
    assert len(found["isoflop"]) == 4
    page = Path("report/report.html").read_text()
    assert page.count("<figure>") == 5
    assert "another convention gives other exponents" in page
    for name in ("isoflop", "optimum", "frontier", "residuals", "bootstrap"):
        assert {path.suffix for path in Path("report/figures").glob(f"{name}.*")} == {".svg", ".png", ".csv"}
    assert Path("report/figures/isoflop.csv").read_text().startswith("flops,n_params,loss\n")


def test_a_number_that_is_not_finite_is_null_in_every_json(table, tmp_path, capsys):
    found = command.findings(read_runs(Path(table)), FitConfig(draws=40))
    unknown = PowerLaw(coefficient=1.0, exponent=0.5, interval=(-np.inf, np.inf))
    found = found._replace(lines=(unknown, None))
    command._finish(argparse.Namespace(report=tmp_path, json=True), found, command.figures(found))

    def refuse(text):
        raise AssertionError(text)

    for text in (capsys.readouterr().out, (tmp_path / "result.json").read_text()):
        assert json.loads(text, parse_constant=refuse)["isoflop_exponent_95"] == [None, None]
    assert "Infinity" not in (tmp_path / "report.html").read_text()


def test_warnings_of_a_profile_follow_those_of_the_fit(table):
    found = command.findings(read_runs(Path(table)), FitConfig(draws=40))
    flagged = dataclasses.replace(found.minima[0], c=1e18, flags=("crooked",))
    found = found._replace(fit=dataclasses.replace(found.fit, warnings=("few runs",)), minima=(flagged,))
    assert found.warnings == command.figures(found)["warnings"] == ["few runs", "1e+18 FLOPs: crooked"]


def test_validate_puts_the_error_beside_the_interval(table, capsys):
    found = shown(capsys, "validate", table, "--holdout", "1")
    (held_out,) = found["held_out"]
    assert held_out["compute_ratio"] == pytest.approx(4.0)
    assert held_out["interval"][0] < held_out["predicted"] < held_out["interval"][1]
    assert [round(p["c"] / 1e18) for p in found["rolling_origin"]] == [16, 64]


def test_validate_fits_all_runs_for_a_report_alone(table, capsys, monkeypatch):
    found = shown(capsys, "validate", table, "--report", "report")
    assert Path("report/figures/held_out.svg").exists()
    monkeypatch.setattr(command, "findings", None)
    assert shown(capsys, "validate", table) == found


def test_recommend_warns_on_stderr_about_a_far_extrapolation(table, capsys):
    cli.main(["scale", "recommend", table, "--flops", "1e23", "--draws", "60", "--json"])
    out, err = capsys.readouterr()
    assert "warning: 1e+23 FLOPs are" in err
    assert json.loads(out)["shape"]["layers"] > 1


def test_tables_for_people_are_printed(table, capsys):
    for argv in (["fit"], ["validate"], ["recommend", "--flops", "1e20"]):
        cli.main(["scale", argv[0], table, *argv[1:], "--draws", "60"])
    text = capsys.readouterr().out
    for part in ("isoFLOP minima", "rolling origin", "tokens per parameter", "--model.layers"):
        assert part in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fit", "none.csv"], "no such table of runs: none.csv"),
        (["fit", "runs.jsonl", "--method", "magic"], "argument --method: invalid choice: 'magic' (choose from"),
        (["fit", "runs.jsonl", "--draws", "3"], "draws must be at least 40"),
        (["fit", "runs.jsonl", "--drop", "r99"], "drop r99: no such run"),
        (["fit", "runs.jsonl", "--loss", "bits"], "no column 'bits': name the column with --loss"),
        (["validate", "runs.jsonl", "--holdout", "3"], "3 budgets held out of 4"),
        (["recommend", "runs.jsonl", "--flops", "-1"], "flops must be positive"),
        (["fit", "runs.jsonl", "--nosuch"], "unknown option '--nosuch'"),
        (["sweep", "none.py"], "no such experiment file: none.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_named(table, capsys, argv, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(["scale", *argv])
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert words in shown.err
    assert shown.out == ""
