"""A trained model, ready to talk: found in the folder of a run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gptjax.data.load_tokenizer import load_tokenizer
from gptjax.data.tokenizer import Tokenizer
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.model_types import Model
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.run.start import start_jax
from gptjax.run.tasks.upstream import load_policy
from gptjax.types import Params

ANSWERING = ("sft", "ppo", "dpo", "grpo", "rejection")  # kinds of tasks whose models were taught to answer
TALKING = ("lm", *ANSWERING)  # those that continue a text besides


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """stage: of the run.  task: one of those that talk.  params lie on `mesh`, which is one device."""

    model: Model
    params: Params
    tokenizer: Tokenizer
    config: ModelConfig
    stage: str
    task: str
    mesh: Any


def load(run: Path, stage: str | None) -> LoadedModel:
    """The model of a stage of a run (None: the last finished one that can talk).

    Raises:
        ValueError: no run there, or the stage is unknown, unfinished or cannot talk, or its tokenizer was exchanged.
    """
    chosen, task = choose_stage(run, stage)
    start_jax()
    folder = run / chosen
    config = ModelConfig(**_read(folder / "model.json"))
    tokenizer = load_tokenizer(_existing(folder / "tokenizer.model"))
    _check_tokenizer(folder, tokenizer)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = load_policy(language_model(config), folder, mesh)
    return LoadedModel(
        model=language_model(config),
        params=params,
        tokenizer=tokenizer,
        config=config,
        stage=chosen,
        task=task,
        mesh=mesh,
    )


def choose_stage(run: Path, stage: str | None) -> tuple[str, str]:
    """(stage, its task): the one asked for, or the last finished one that can talk.

    Raises:
        ValueError: there is none, or not that one; the message names those that can talk.
    """
    if not (run / "recipe.json").exists():
        raise ValueError(f"no run in {run}: recipe.json is missing; give the folder of a run with a finished {_LISTED}")
    stages = _read(run / "recipe.json")["stages"]
    results = {name: run / name / "result.json" for name in stages}
    tasks = {name: _read(path)["task"] for name, path in results.items() if path.exists()}
    able = [name for name, task in tasks.items() if task in TALKING]
    can_talk = f"stages of {run} that can talk: {', '.join(able) or 'none yet'}"
    if stage is None:
        if not able:
            raise ValueError(f"no {_LISTED} of {run} is finished; {can_talk}")
        return able[-1], tasks[able[-1]]
    if stage not in stages:
        raise ValueError(f"unknown stage {stage!r}; {can_talk}")
    if stage not in tasks:
        raise ValueError(f"stage {stage!r} is not finished; {can_talk}")
    if stage not in able:
        raise ValueError(f"stage {stage!r} is a {tasks[stage]} model, which does not talk; {can_talk}")
    return stage, tasks[stage]


def _check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Raise ValueError if the tokenizer is not the one that the stage was trained with, as far as its result says."""
    _, dash, trained_with = _read(folder / "result.json").get("data_fingerprint", "").rpartition("-")
    if dash and trained_with != tokenizer.fingerprint[:16]:
        raise ValueError(
            f"{folder / 'tokenizer.model'} is not the tokenizer that the model was trained with (fingerprint "
            f"{trained_with} then, {tokenizer.fingerprint[:16]} now): restore the file"
        )


_LISTED = f"{', '.join(TALKING[:-1])} or {TALKING[-1]} stage"


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_existing(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} is missing")
    return path
