"""Overrides and text forms of configs."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from gptjax.config import override, split_stage_args, to_text


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        if self.fsdp < 1:
            raise ValueError(f"fsdp must be positive, not {self.fsdp}")


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    decay: float = 0.99


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: Literal["adamw", "muon"] = "adamw"
    peak_lr: float = 1e-3
    ema: EmaConfig | None = None


@dataclass(frozen=True, kw_only=True)
class LmTask:
    paths: tuple[Path, ...] = (Path("a.txt"),)


@dataclass(frozen=True, kw_only=True)
class PpoTask:
    kl_coefficient: float = 0.05
    bounds: tuple[int, ...] = (-1, 1)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    path: Path
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    seed: int = 0
    shuffle: bool = True
    workdir: Path | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    task: LmTask | PpoTask = field(default_factory=PpoTask)
    sources: tuple[SourceConfig, ...] = (SourceConfig(path=Path("x")), SourceConfig(path=Path("y")))

    def __post_init__(self):
        if self.seed == 13:
            raise ValueError("seed must not be 13")


TEXT = """\
seed = 0
shuffle = True
workdir = None
mesh.fsdp = 1
mesh.tensor = 1
optimizer.name = 'adamw'
optimizer.peak_lr = 0.001
optimizer.ema = None
task = PpoTask
task.kl_coefficient = 0.05
task.bounds = (-1, 1)
sources.0.path = 'x'
sources.0.weight = 1.0
sources.1.path = 'y'
sources.1.weight = 1.0
"""


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--mesh.fsdp", "4"], "mesh.fsdp = 4"),
        (["--mesh.fsdp=4"], "mesh.fsdp = 4"),
        (["--optimizer.peak-lr", "3e-4"], "optimizer.peak_lr = 0.0003"),
        (["--optimizer.peak_lr", "3e-4"], "optimizer.peak_lr = 0.0003"),
        (["--optimizer.name", "muon"], "optimizer.name = 'muon'"),
        (["--no-shuffle"], "shuffle = False"),
        (["--no_shuffle", "--shuffle"], "shuffle = True"),
        (["--workdir", "/tmp/a=b"], "workdir = '/tmp/a=b'"),
        (["--workdir", "/tmp", "--workdir", "None"], "workdir = None"),
        (["--seed", "-3"], "seed = -3"),
        (["--task.kl-coefficient", "-1e-3"], "task.kl_coefficient = -0.001"),
        (["--task.bounds", "-2", "3", "4"], "task.bounds = (-2, 3, 4)"),
        (["--task.bounds"], "task.bounds = ()"),
        (["--sources.1.weight", "0.5"], "sources.1.weight = 0.5"),
        (["--sources.0.path=-h"], "sources.0.path = '-h'"),
    ],
)
def test_an_option_sets_one_leaf(args, line):
    name = line.split(" = ")[0]
    changed = to_text(override(RunConfig(), args)).splitlines()
    assert line in changed
    others = [x for x in TEXT.splitlines() if x.split(" = ")[0] != name]
    assert [x for x in changed if x != line] == others


def test_a_union_keeps_its_class():
    assert override(RunConfig(), ["--task.kl-coefficient", "0.1"]).task == PpoTask(kl_coefficient=0.1)
    lm = override(RunConfig(task=LmTask()), ["--task.paths", "b", "c"])
    assert lm.task == LmTask(paths=(Path("b"), Path("c")))


def test_what_is_not_set_stays_the_same_object():
    config = RunConfig()
    assert override(config, []) is config
    assert override(config, ["--mesh.fsdp", "2"]).optimizer is config.optimizer


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--mesh.fspd", "4"], ["--mesh.fspd", "no such option", "did you mean --mesh.fsdp"]),
        (["--mesh.zzzzzzzz", "4"], ["--mesh.zzzzzzzz", "there are --mesh.fsdp, --mesh.tensor"]),
        (["--qqqqqqqqqqqqq"], ["there are --seed, --shuffle", "more"]),
        (["--mesh", "4"], ["--mesh", "no such option"]),
        (["--mesh.fsdp", "four"], ["--mesh.fsdp", "expected int", "'four'"]),
        (["--mesh.fsdp=2", "3"], ["--mesh.fsdp", "expected int", "'2 3'"]),
        (["--mesh.fsdp"], ["--mesh.fsdp", "expected int", "no value"]),
        (["--optimizer.name", "sgd"], ["--optimizer.name", "one of adamw, muon", "'sgd'"]),
        (["--task.bounds", "1", "x"], ["--task.bounds", "tuple[int, ...]", "'1 x'"]),
        (["--shuffle", "maybe"], ["--shuffle", "takes no value", "'maybe'", "--shuffle or --no-shuffle"]),
        (["--no-seed"], ["--no-seed", "no such option", "--seed"]),
        (["--optimizer.ema.decay", "0.9"], ["--optimizer.ema.decay", "optimizer.ema is None here"]),
        (["4"], ["'4'", "--name value"]),
        (["--seed", "13"], ["seed must not be 13", "--seed 13"]),
        (["--mesh.fsdp", "-1", "--seed", "2"], ["mesh: fsdp must be positive, not -1 (set by --mesh.fsdp -1)"]),
    ],
)
def test_a_wrong_option_is_explained(args, words, capfd):
    with pytest.raises(ValueError, match=r".") as caught:
        override(RunConfig(), args)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit) as caught:
        override(RunConfig(), ["--help"])
    assert caught.value.code == 0
    assert "--task.kl-coefficient" in capsys.readouterr().out


def stages():
    return {"lm": RunConfig(task=LmTask()), "sft": RunConfig(task=LmTask()), "reward-model": RunConfig()}


def test_stage_options_reach_their_stage_and_win():
    args = ["--stages.sft.mesh.fsdp", "2", "--mesh.fsdp", "4", "--no-shuffle"]
    args += ["--stages.reward_model.task.kl-coefficient=-0.5", "--stages.reward-model.task.bounds", "-1", "2"]
    split = split_stage_args(args, stages())
    assert split["lm"] == ["--mesh.fsdp", "4", "--no-shuffle"]
    assert split["sft"] == [*split["lm"], "--mesh.fsdp", "2"]
    own = ["--task.kl-coefficient=-0.5", "--task.bounds", "-1", "2"]
    assert split["reward-model"] == [*split["lm"], *own]
    assert override(stages()["sft"], split["sft"]).mesh.fsdp == 2
    assert override(stages()["reward-model"], split["reward-model"]).task == PpoTask(
        kl_coefficient=-0.5, bounds=(-1, 2)
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--stages.ppo.seed", "1"], ["no stage 'ppo'", "lm, sft, reward-model"]),
        (["--stages.lm", "1"], ["--stages.lm", "--stages.NAME.OPTION"]),
        (["--stages", "1"], ["--stages", "lm, sft, reward-model"]),
        (["--stages.lm.sede", "1"], ["stage 'lm'", "--sede", "--seed"]),
        (["--task.kl-coefficient", "1"], ["only stage reward-model", "--stages.reward-model.task.kl-coefficient"]),
        (["--task.paths", "1"], ["only stage lm, sft", "--stages.lm.task.paths"]),
        (["--sede", "1"], ["--sede", "did you mean --seed"]),
        (["x"], ["'x'"]),
    ],
)
def test_a_wrong_stage_option_is_explained(args, words):
    with pytest.raises(ValueError, match=r".") as caught:
        split_stage_args(args, stages())
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_text_is_one_line_per_leaf_in_field_order():
    assert to_text(RunConfig()) == TEXT


def test_importing_the_module_leaves_tyro_alone():
    code = "import sys, gptjax.config; print('tyro' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
