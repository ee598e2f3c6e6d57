"""Sweeps: horizons and budgets by hand, rows from results alone, and what is refused."""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptjax.data.byte_tokenizer import ByteTokenizer
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.scale import sweep as sweeping
from gptjax.run.scale.grid import Sweep, Trunk, isoflop, rate_by_batch
from gptjax.run.tasks.lm import LmTask
from gptjax.scaling.accounting import flops_per_token
from gptjax.scaling.runs import read_runs

ROOT = Path(__file__).parents[3]
MINI = ROOT / "experiments" / "isoflop_mini.py"
MODEL = ModelConfig(vocab_size=256, layers=1, width=16, heads=1, max_length=32, activation="relu2", tied=False)


def template(model, batch_tokens):
    optimizer = OptimizerConfig(peak_lr=1e-2, schedule="wsd", final_fraction=0.0, warmup_steps=50)
    return Experiment(
        task=LmTask(byte_tokens=True, row_tokens=32, samples=0), model=model, optimizer=optimizer, steps=1,
        batch_size=batch_tokens // 32,
    )  # fmt: skip


def trunk(*horizons, **changes):
    return Trunk(name="t", experiment=template(MODEL, 64), horizons=horizons, budgets=(1.0,) * len(horizons), **changes)


def test_stages_go_on_from_the_segment_before():
    # decays are a fifth: horizons 100 and 200 branch off at 80 and 160; the last branch is the trunk's own end
    stages = trunk(100, 200).recipe().stages
    assert {name: (stage.steps, stage.branch_from) for name, stage in stages.items()} == {
        "trunk_80": (80, None),
        "at_100": (100, "trunk_80"),
        "at_200": (200, "trunk_80"),
    }
    assert [stage.optimizer.schedule for stage in stages.values()] == ["constant", "wsd", "wsd"]
    assert [stage.task.examine for stage in stages.values()] == [False, True, True]


def test_a_trunk_costs_its_length_and_the_extra_decays():
    # 200 steps and 20 more for the first decay, 64 tokens each
    assert trunk(100, 200).own_flops() == pytest.approx(220 * 64 * flops_per_token(MODEL, 32))


def test_an_isoflop_grid_spends_the_budgets():
    per_token = flops_per_token(MODEL, 32)
    budgets = {per_token * 64 * 100: ("small",), per_token * 64 * 300: ("small",), 1.0: ("other",)}
    (found,) = isoflop({"small": MODEL}, budgets, template, row_tokens=32, batch_tokens=lambda tokens: 64)
    assert found.horizons == (100, 300)
    assert found.experiment.steps == 300
    assert found.experiment.optimizer.warmup_steps == 10  # a tenth of the first horizon
    seeds = isoflop(
        {"s": MODEL}, {per_token * 6400: ("s",)}, template, row_tokens=32, batch_tokens=lambda t: 64, seeds=(0, 1)
    )
    assert [(t.name, t.experiment.seed) for t in seeds] == [("s", 0), ("s_seed1", 1)]


def test_a_grid_of_rates_and_batches_is_a_product():
    rates = rate_by_batch({"a": MODEL}, [0.1, 0.2], [64, 128], template, tokens=64_000, row_tokens=32)
    assert {(t.experiment.optimizer.peak_lr, t.batch_tokens, t.horizons) for t in rates} == {
        (rate, batch, (64_000 // batch,)) for rate in (0.1, 0.2) for batch in (64, 128)
    }


def options(**changes):
    given = {"file": f"{MINI}:ci", "workdir": None, "shard": "0/1", "processes": None, "dry_run": True, "json": True}
    return argparse.Namespace(**given | changes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: trunk(200, 100), "must rise"),
        (lambda: trunk(200, 200), "must rise"),
        (lambda: trunk(50), "warm-up takes 50 steps"),
        (lambda: Sweep(name="s", trunks=(trunk(100), trunk(200))), "called alike: t"),
        (lambda: Sweep(name="s", trunks=()), "has no trunks"),
        (lambda: Sweep(name="s", trunks=(trunk(100),)).trunk("u"), "has no trunk 'u'"),
        (lambda: sweeping._share((trunk(100),), "2/2"), "--shard '2/2'"),
        (lambda: sweeping.scale_sweep(options(processes=0), []), "--processes must be at least 1, got 0"),
    ],
)
def test_an_impossible_sweep_is_refused(make, words):
    with pytest.raises(ValueError, match=r".") as caught:
        make()
    assert words in str(caught.value)


def leave(workdir, name, steps, loss, data="data-tok"):
    folder = workdir / name / f"at_{steps}"
    folder.mkdir(parents=True)
    evaluation = {"nats_per_token": loss, "bits_per_byte": 1.0, "packing_rows": 10}
    (folder / "result.json").write_text(json.dumps({"evaluation": evaluation, "data_fingerprint": data}))
    ByteTokenizer().save(folder / "tokenizer.model")


def test_rows_are_a_function_of_the_results(tmp_path):
    sweep = Sweep(name="s", trunks=(trunk(100, 200),))
    leave(tmp_path, "t", 100, 2.5)
    (row,) = sweeping.write_rows(sweep, tmp_path)
    text = (tmp_path / "runs.jsonl").read_bytes()
    sweeping.write_rows(sweep, tmp_path)
    assert (tmp_path / "runs.jsonl").read_bytes() == text
    assert (row["run"], row["status"], row["n_tokens"], row["unique_tokens"]) == ("t@100", "done", 6400, 320)
    assert row["n_params"] == row["params_matmul"] == MODEL.matmul_parameters()
    assert row["flops"] == row["flops_exact"] == pytest.approx(6400 * flops_per_token(MODEL, 32))
    assert row["flops_6n_matmul"] == 6 * row["n_params"] * 6400
    leave(tmp_path, "t", 200, float("nan"))
    rows = sweeping.write_rows(sweep, tmp_path)
    assert (rows[1]["status"], rows[1]["loss"]) == ("diverged", None)
    assert rows[0] == row


def test_rows_of_two_corpora_have_one_tokenizer(tmp_path):
    # a corpus read by the stage, and shards, whose fingerprint says nothing of the tokenizer
    sweep = Sweep(name="s", trunks=(trunk(100, 200),))
    leave(tmp_path, "t", 100, 2.5, data="83aff51c34c96470-c1d6fd471d759990")
    leave(tmp_path, "t", 200, 2.4, data="0123456789abcdef0123456789abcdef")
    rows = sweeping.write_rows(sweep, tmp_path)
    assert [row["tokenizer"] for row in rows] == ["c1d6fd471d759990"] * 2  # as in the table of docs/scaling
    assert len(read_runs(tmp_path / "runs.jsonl")) == 2


def test_the_held_out_run_is_compared_with_what_was_written_down(tmp_path):
    # no table of runs is there, so nothing can be fitted again; every figure is of prediction.json or of the run
    candidate = dataclasses.replace(trunk(100), name="h")
    sweep = Sweep(name="s", trunks=(trunk(100),), held_out=(candidate,))
    leave(tmp_path, "h", 100, 2.0)
    said = {"trunk": "h", "loss": 2.03, "interval_95": [1.9, 1.99], "straight_line": 2.2, "compute_ratio": 4.0}
    (tmp_path / "prediction.json").write_text(json.dumps(said))
    found = sweeping._held_out("none.py", sweep, tmp_path)["held_out"]
    assert json.loads((tmp_path / "validation.json").read_text()) == json.loads(json.dumps(found))
    assert found["name"] == "h@100"
    assert (found["n"], found["d"], found["c"]) == (MODEL.matmul_parameters(), 6400, candidate.flops(100))
    figures = {name: value for name, value in found.items() if name not in ("name", "n", "d", "c")}
    assert figures == {
        "loss": 2.0,
        "compute_ratio": 4.0,
        "predicted": 2.03,
        "error": pytest.approx(0.015),
        "interval": (1.9, 1.99),
        "inside": False,
        "straight_line": 2.2,
        "straight_error": pytest.approx(0.1),
        "allowed_error": pytest.approx(0.01),
        "passed": False,
    }


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no sweep"):
        sweeping._claim(Sweep(name="s", trunks=(trunk(100),)), tmp_path)


def test_workers_are_told_once_to_stop_and_waited_for(tmp_path, monkeypatch):
    # in groups of their own: what Ctrl-C in a terminal sends reaches the group of the sweep
    told = []

    class Worker:
        def __init__(self, command, **options):
            told.append(("start", options["process_group"]))

        def poll(self):
            raise KeyboardInterrupt

        def terminate(self):
            told.append("terminate")

        def wait(self):
            told.append("wait")

    monkeypatch.setattr(sweeping.subprocess, "Popen", Worker)
    trunks = (trunk(100), dataclasses.replace(trunk(100), name="u"))
    with pytest.raises(KeyboardInterrupt):
        sweeping._train("none.py", trunks, tmp_path, 2)
    assert told == [("start", 0), ("start", 0), "terminate", "terminate", "wait", "wait"]


@pytest.mark.parametrize("name", ["sweep", "full", "ci", "large_batch"])
def test_the_sweeps_of_the_experiments_can_be_made(name):
    made = sweeping.load_sweep(f"{MINI}:{name}")
    total = sum(t.own_flops() for t in made.trunks)
    assert total < {"sweep": 1.1e13, "full": 1.6e14, "ci": 2e11, "large_batch": 2e13}[name]
    assert all(t.experiment.task.row_tokens == 128 for t in made.trunks)


TINY = """
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.scale.grid import Sweep, Trunk
from gptjax.run.tasks.lm import LmTask
from pathlib import Path

MODEL = ModelConfig(vocab_size=256, layers=1, width=16, heads=1, max_length=32, activation="relu2", tied=False)

def sweep(horizons=(20, 40)):
    optimizer = OptimizerConfig(peak_lr=1e-2, schedule="wsd", final_fraction=0.0, warmup_steps=4)
    task = LmTask(corpus=Path(__file__).with_name("corpus.txt"), byte_tokens=True, row_tokens=32, samples=0)
    run = Experiment(task=task, model=MODEL, optimizer=optimizer, steps=1, batch_size=2)
    trunk = Trunk(name="t", experiment=run, horizons=horizons, budgets=(1.0,) * len(horizons))
    return Sweep(name="tiny", trunks=(trunk,))

def alone():
    return sweep((40,))
"""


def environment(home):
    """Of a process that knows nothing of this machine but the sources."""
    return {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(home), "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_a_branch_is_the_run_from_scratch_and_a_second_call_does_nothing(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "corpus.txt").write_text("".join(f"line {i} of a text about {i * i}\n" for i in range(4000)))

    def sweep(name, workdir):
        command = [sys.executable, "-m", "gptjax", "scale", "sweep", f"tiny.py:{name}", "--workdir", workdir, "--json"]
        subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), check=True, capture_output=True)
        return (tmp_path / workdir / "runs.jsonl").read_text()

    branched = sweep("sweep", "a")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "t").rglob("*") if path.is_file()}
    assert sweep("sweep", "a") == branched
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    losses = [json.loads(line)["loss"] for line in (branched + sweep("alone", "b")).splitlines()]
    assert losses[1] == losses[2]  # bit for bit
    (segment,) = (tmp_path / "a" / "t").glob("trunk_*/result.json")
    assert json.loads(segment.read_text())["evaluation"] == {}  # nobody reads it


@pytest.mark.slow
def test_the_sweep_for_ci_survives_a_kill_and_claims_no_exponent(tmp_path):
    target, workdir = f"{MINI}:ci", tmp_path / "sweep"
    alone = environment(tmp_path)
    command = [sys.executable, "-m", "gptjax", "scale"]
    sweep = [*command, "sweep", target, "--workdir", str(workdir), "--json"]
    with subprocess.Popen(sweep, env=alone, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while not (done := list(workdir.glob("*/*/result.json"))) and process.poll() is None:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    assert done, "the sweep ended before it finished a stage"
    stamps = {path: path.stat().st_mtime_ns for path in done}
    found = subprocess.run(sweep, env=alone, check=True, capture_output=True, text=True)
    assert json.loads(found.stdout)["runs"] == 6
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    rows = [json.loads(line) for line in (workdir / "runs.jsonl").read_text().splitlines()]
    assert [(row["trunk"], row["budget"], row["status"]) for row in rows] == [
        (size, budget, "done") for size in ("20k", "33k", "68k") for budget in (2e10, 4e10)
    ]
    for row in rows:
        assert row["flops"] == row["flops_exact"] == pytest.approx(row["budget"], rel=0.01)
        assert row["loss"] < 3.0
        assert None not in [row[name] for name in row if name.startswith(("flops", "params", "n_"))]
    fit = [*command, "fit", str(workdir / "runs.jsonl"), "--draws", "40", "--json"]
    warnings = json.loads(subprocess.run(fit, env=alone, check=True, capture_output=True).stdout)["warnings"]
    assert any("alpha is not identified" in warning for warning in warnings)
    assert any("minimum at grid edge" in warning for warning in warnings)
