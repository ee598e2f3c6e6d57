"""A trained model, ready to talk: found in the folder of a run."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from gptjax.data.tokenizer import Tokenizer
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.run.tasks.upstream import load_params
from gptjax.types import Model, Params

_TALKS = ("lm", "sft", "ppo")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """stage: of the run.  task: lm, sft or ppo.  params lie on one device."""

    stage: str
    task: str
    config: ModelConfig
    model: Model
    params: Params
    tokenizer: Tokenizer
    mesh: Any


def load(run: Path, stage: str | None) -> LoadedModel:
    """The model of a stage of a run (None: the last finished one that can talk).

    Raises:
        ValueError: no run there, or the stage cannot talk.
    """
    if not (run / "recipe.json").exists():
        raise ValueError(f"no run in {run}: recipe.json is missing")
    stages = json.loads((run / "recipe.json").read_text())["stages"]
    tasks = {
        name: json.loads((run / name / "result.json").read_text())["task"]
        for name in stages
        if (run / name / "result.json").exists()
    }
    able = [name for name, task in tasks.items() if task in _TALKS]
    if not able or (stage is not None and stage not in able):
        raise ValueError(f"stage {stage or 'of any kind'} cannot talk; finished and able: {', '.join(able) or 'none'}")
    chosen = stage or able[-1]
    folder = run / chosen
    config = ModelConfig(**json.loads((folder / "model.json").read_text()))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = _params(config, folder, tasks[chosen], mesh)
    return LoadedModel(
        stage=chosen,
        task=tasks[chosen],
        config=config,
        model=language_model(config),
        params=params,
        tokenizer=Tokenizer.load(folder / "tokenizer.model"),
        mesh=mesh,
    )


def _params(config: ModelConfig, folder: Path, task: str, mesh: Any) -> Params:
    policy = language_model(config)
    if task != "ppo":
        return load_params(policy, folder, mesh)[0]
    scalar = scalar_model(config)
    both = replace(
        policy,
        init=lambda key: {"policy": policy.init(key), "value": scalar.init(key)},
        letters={"policy": policy.letters, "value": scalar.letters},
    )
    return load_params(both, folder, mesh, ("kl_coefficient",))[0]["policy"]
