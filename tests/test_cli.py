"""A user's mistakes on the command line: exit code 2, one line, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest

from gptjax import cli
from gptjax.run.exits import NumericalFaultError, Preempted

MINI = str(Path(__file__).parents[1] / "experiments" / "chatgpt_mini.py")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """An empty current folder, and JAX as the tests configured it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPTJAX_TRACEBACK", raising=False)
    monkeypatch.setattr("gptjax.run.start.start_jax", lambda devices=None, hosts=None: None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def refused(capsys, *argv):
    """The one line of the error, without the newline."""
    before = contents()
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    shown = capsys.readouterr()
    assert (stop.value.code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert shown.err.startswith("error: ")
    assert contents() == before
    return shown.err[:-1]


def contents():
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def test_a_missing_experiment_file_is_named(capsys):
    assert refused(capsys, "run", "nofile.py") == "error: no such experiment file: nofile.py"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--learning_rat", "1"], ["--learning_rat"]),
        (["--optimizer.peak_l", "1"], ["did you mean --optimizer.peak-lr"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--steps"], ["--steps"]),
        (["--stages.nosuch.steps", "3"], ["'nosuch'", "lm", "sft", "reward", "ppo"]),
        (["--task.corpus", "texts"], ["--task.corpus", "only stage", "--stages.lm.task.corpus"]),
        (["--batch_size", "0"], ["stage lm", "batch_size must be at least 1, got 0"]),
        (["--stages.sft.task.turns", "first"], ["stage sft", "first", "all", "last"]),
        (["--mesh.fsdp", "3"], ["fsdp 3", "needs 6 devices, but there are 8"]),
        (["--mesh.fsdp", "8", "--batch_size", "12"], ["stage lm", "batch_size 12", "fsdp", "8"]),
        (["--devices", "0"], ["--devices must be at least 1, got 0"]),
        (["stray"], ["stray"]),
    ],
    ids=" ".join,
)
def test_wrong_settings_are_named(capsys, options, parts):
    error = refused(capsys, "run", MINI, *options)
    assert [part for part in parts if part not in error] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def recipe(:", "cannot be imported: SyntaxError"),
        ("import nosuchmodule", "cannot be imported: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def train(): pass", "defines no function recipe or experiment; it has: train"),
        (
            "def recipe(x): return 3",
            "mine.py:recipe cannot be called without arguments: missing",
        ),
        ("def recipe(): return 3", "mine.py:recipe() returned int, not an Experiment or a Recipe"),
        ("def experiment(): return 3", "mine.py:experiment() returned int, not an Experiment or a Recipe"),
    ],
)
def test_a_file_that_defines_no_experiment_is_explained(capsys, text, message):
    Path("mine.py").write_text(text)
    assert message in refused(capsys, "run", "mine.py")


def test_a_folder_that_holds_something_else_is_left_alone(capsys):
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("years of work")
    assert "thesis is not empty and holds no run" in refused(capsys, "run", MINI, "--workdir", "thesis")


@pytest.mark.parametrize("command", [["generate", "nowhere", "--prompt", "a"], ["chat", "nowhere"]])
def test_a_missing_run_is_named(capsys, command):
    assert refused(capsys, *command).startswith("error: no run in nowhere: ")


def test_a_damaged_run_is_named(capsys):
    Path("broken").mkdir()
    Path("broken/recipe.json").write_text("{")
    assert "recipe.json is not valid JSON" in refused(capsys, "chat", "broken")


def test_an_unknown_option_of_chat_is_named(capsys):
    assert refused(capsys, "chat", "nowhere", "--temprature", "1").startswith("error: unknown option '--temprature'")


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("gptjax.run.load.load_recipe", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", MINI])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to go on\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Preempted("SIGTERM: step 8 of stage lm is saved"), 75, "stopped by SIGTERM: step 8 of stage lm is saved: run"),
        (NumericalFaultError("updates 1 to 5 were not finite"), 70, "stopped: updates 1 to 5 were not finite"),
        (
            OSError(30, "Read-only file system", "runs/a"),
            2,
            "error: runs/a: Read-only file system; nothing was deleted",
        ),
        (OSError(28, "No space left on device"), 2, "error: No space left on device; nothing was deleted"),
    ],
)
def test_how_a_run_ended_is_said_in_words_and_in_the_exit_code(error, code, words, capsys, monkeypatch):
    def ended(*args):
        raise error

    monkeypatch.setattr("gptjax.run.load.load_recipe", ended)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", MINI])
    assert stop.value.code == code
    assert capsys.readouterr().err.startswith(words)


@pytest.mark.parametrize(("task", "talks"), [("grpo.GrpoTask", True), ("lm.LmTask", False), ("mlm.MlmTask", False)])
def test_a_run_says_how_to_talk_to_a_model_that_answers_whatever_its_stage_is_called(
    task, talks, capsys, monkeypatch, tmp_path
):
    module, name = task.split(".")
    text = f"""
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.tasks.{module} import {name}
def experiment():
    model, rate = ModelConfig(vocab_size=4, layers=1, width=4, heads=1), OptimizerConfig(peak_lr=1.0)
    return Experiment(task={name}(), model=model, optimizer=rate, steps=1, batch_size=1)
"""
    Path("mine.py").write_text(text)
    monkeypatch.setattr("gptjax.run.driver.run", lambda recipe, workdir: tmp_path / "report.html")
    monkeypatch.setattr("gptjax.run.criteria.criteria_sentences", lambda folder, stages: [])
    cli.main(["run", "mine.py"])
    assert (f"talk to it: gptjax chat {tmp_path}" in capsys.readouterr().out) == talks


def test_help_does_not_wait_for_jax():
    code = (
        "import sys; from gptjax import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: gptjax")
