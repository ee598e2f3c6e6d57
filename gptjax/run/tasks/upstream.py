"""What a stage takes from another one: tokenizer and parameters."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax import dims
from gptjax.data.load_tokenizer import load_tokenizer
from gptjax.data.tokenizer import Tokenizer
from gptjax.files import replacing
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.model_types import Model, ScalarModel
from gptjax.run.hosts import on_first
from gptjax.run.restore import load_model
from gptjax.run.task import Setup
from gptjax.run.tasks.outlines import first_state
from gptjax.types import Params, TrainState


def inherited(stage: str, setup: Setup) -> tuple[Path, Tokenizer]:
    """Folder and tokenizer of a stage, whose model must have this stage's sizes.

    The tokenizer is copied into this stage's folder, so that a result is complete by itself.

    Raises:
        ValueError: the stage was not trained, or trained a model of other sizes.
    """
    folder = setup.stage_folder(stage)
    check_model(folder, setup.model)
    source, own = folder / "tokenizer.model", setup.folder / "tokenizer.model"

    def copy() -> None:
        if own.exists():
            return
        if not source.exists():
            raise ValueError(f"no tokenizer in {folder}: has that stage been trained?")
        with replacing(own) as temporary:
            shutil.copyfile(source, temporary)

    on_first(copy)
    return folder, load_tokenizer(own)


_HOW = (  # how a model is computed, not what it is
    "dropout", "dtype", "remat", "unroll", "attention", "spread_norms", "context_attention", "capacity_factor",
    "matmuls", "balance_coefficient", "router_z_coefficient",
)  # fmt: skip


def check_model(folder: Path, config: ModelConfig) -> None:
    """Raise ValueError if the stage in `folder` trained a model of other sizes than `config`."""
    path = folder / "model.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: {folder} is not the folder of a trained stage")
    theirs = json.loads(path.read_text())
    mine = vars(config)
    sizes = [name for name in theirs if name not in _HOW and theirs[name] != mine.get(name)]
    if sizes:
        listed = ", ".join(f"model.{name} {theirs[name]} there, {mine.get(name)} here" for name in sizes)
        raise ValueError(f"the model in {folder} differs from this experiment's: {listed}")


def reward_model(reward_from: str | None, setup: Setup) -> dict[str, Any]:
    """reward (parameters), reward_gain and reward_bias of a trained stage, by these names; {} for None."""
    if reward_from is None:
        return {}
    folder = setup.stage_folder(reward_from)
    check_model(folder, setup.model)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(setup.mesh, PartitionSpec()))
    extra = {"reward_gain": scalar, "reward_bias": scalar}
    loaded = load_model(folder, {"params": _abstract(scalar_model(setup.model), setup.mesh), "extra": extra})
    return {"reward": loaded["params"]} | loaded["extra"]


def load_policy(model: Model, folder: Path, mesh: Mesh) -> Params:
    """The language model that a finished stage hands on; PPO's result says whether its averaged or its last weights."""
    path = folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    usual = "last" if result.get("task") == "ppo" else None
    part, *within = _POLICY_PLACES[result.get("evaluation", {}).get("policy_weights", usual)]
    wanted = _abstract(model, mesh)
    found = load_model(folder, {part: {within[0]: wanted} if within else wanted})[part]
    return found[within[0]] if within else found


def load_trunk(setup: Setup, folder: Path) -> Params:
    """The trunk of a scalar model with the weights of a finished stage: its language model without the unembedding."""
    return load_policy(language_model(replace(setup.model, tied=True)), folder, setup.mesh)


_POLICY_PLACES: dict[str | None, tuple[str, ...]] = {
    None: ("params",),
    "last": ("params", "policy"),
    "average": ("extra", "average"),
}


def _abstract(model: Model | ScalarModel, mesh: Mesh) -> Any:
    def struct(shape: jax.ShapeDtypeStruct, letters: str) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, dims.param_spec(letters, shape.shape))
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(struct, jax.eval_shape(model.init, jax.random.key(0)), model.letters)


def started(
    model: Model, tx: optax.GradientTransformation, setup: Setup, start_from: str | None
) -> Callable[[jax.Array], TrainState] | None:
    """`Task.start` with the weights of another stage; None when there is none."""
    if start_from is None:
        return None

    def begin(params: Params, key: jax.Array) -> TrainState:
        return first_state(params, tx, key)

    def start(key: jax.Array) -> TrainState:
        params = load_policy(model, setup.stage_folder(start_from), setup.mesh)
        return jax.jit(begin, donate_argnums=0)(params, key)

    return start
