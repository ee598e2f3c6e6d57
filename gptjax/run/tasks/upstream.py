"""What a stage takes from another one: tokenizer, parameters, and a sampler over them."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax import dims
from gptjax.data.load_tokenizer import load_tokenizer
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.answers import Answer, answers
from gptjax.files import replacing
from gptjax.generate.engine import SamplingConfig, generate
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.optim.optimizer import optimizer
from gptjax.run.checkpoint import load_model
from gptjax.run.hosts import on_first
from gptjax.run.mesh import batch_rows, fetch, put
from gptjax.run.task import Outline, Setup
from gptjax.train.grpo import GrpoConfig
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.update import initial_state
from gptjax.types import Drawn, LmBatch, Metrics, Model, Params, PromptBatch, ScalarModel, TrainState


def inherited_tokenizer(folder: Path, setup: Setup) -> Tokenizer:
    """The tokenizer of another stage, copied into this stage's folder so that a result is complete by itself."""
    source, own = folder / "tokenizer.model", setup.folder / "tokenizer.model"

    def copy() -> None:
        if own.exists():
            return
        if not source.exists():
            raise ValueError(f"no tokenizer in {folder}: has that stage been trained?")
        with replacing(own) as temporary:
            shutil.copyfile(source, temporary)

    on_first(copy)
    return load_tokenizer(own)


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


def load_params(
    model: Model | ScalarModel, folder: Path, mesh: Mesh, scalars: tuple[str, ...] = ()
) -> tuple[Params, dict[str, jax.Array]]:
    """(params, extra) of a finished stage on this mesh; `scalars` names what is wanted of its `extra`."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    extra = {"extra": dict.fromkeys(scalars, scalar)} if scalars else {}
    loaded = load_model(folder, {"params": _abstract(model, mesh)} | extra)
    return loaded["params"], loaded.get("extra", {})


def reward_model(reward_from: str | None, setup: Setup) -> dict[str, Any]:
    """reward (parameters), reward_gain and reward_bias of a trained stage, by these names; {} for None."""
    if reward_from is None:
        return {}
    folder = setup.stage_folder(reward_from)
    check_model(folder, setup.model)
    reward, norm = load_params(scalar_model(setup.model), folder, setup.mesh, ("reward_gain", "reward_bias"))
    return {"reward": reward} | norm


def fresh_reward(reward_from: str | None, scalar: ScalarModel, key: jax.Array) -> dict[str, Any]:
    """What `reward_model` gives, never trained."""
    if reward_from is None:
        return {}
    return {"reward": scalar.init(key), "reward_gain": jnp.ones(()), "reward_bias": jnp.zeros(())}


def load_policy(model: Model, folder: Path, mesh: Mesh) -> Params:
    """The language model that a finished stage hands on; PPO's result says whether its averaged or its last weights."""
    path = folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    usual = "last" if result.get("task") == "ppo" else None
    part, *within = _POLICY_PLACES[result.get("evaluation", {}).get("policy_weights", usual)]
    wanted = _abstract(model, mesh)
    found = load_model(folder, {part: {within[0]: wanted} if within else wanted})[part]
    return found[within[0]] if within else found


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


def trained_model(setup: Setup) -> tuple[Model, optax.GradientTransformation]:
    """The language model that a stage trains, and its optimizer."""
    model = language_model(setup.model)
    return model, optimizer(setup.optimizer, setup.steps, model.roles, model.letters, model.ratios)


def abstract_rows(rows: int, tokens: int) -> LmBatch:
    """The shapes of a batch of packed rows."""
    whole = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    weights = jax.ShapeDtypeStruct((rows, tokens), jnp.float32)
    return LmBatch(
        tokens_BT=whole, targets_BT=whole, segments_BT=whole, positions_BT=whole, weights_BT=weights
    )  # fmt: skip


def rows_outline(
    setup: Setup,
    model: Model,
    tx: optax.GradientTransformation,
    step: Callable[[TrainState, LmBatch], tuple[TrainState, Metrics]],
    row_tokens: int,
    *,
    causal: bool = True,
) -> Outline:
    """Of a task whose step takes batches of packed rows."""
    tokens = setup.batch_size * row_tokens
    return Outline(
        init=untrained(model, tx),
        step=step,
        batch=abstract_rows(setup.batch_size, row_tokens),
        step_tokens=tokens,
        step_flops=tokens * setup.model.train_flops_per_token(row_tokens, causal=causal),
    )


def abstract_prompts(prompts: int, tokens: int, *, given: tuple[int, int] | None = None) -> PromptBatch:
    """The shapes of a batch of left-padded prompts; given: (answers, tokens of each) that come with their scores."""
    answers = None
    if given is not None:
        logp_BR = jax.ShapeDtypeStruct(given, jnp.float32)
        answers = Drawn(
            tokens_BR=jax.ShapeDtypeStruct(given, jnp.int32),
            mask_BR=jax.ShapeDtypeStruct(given, jnp.bool),
            logp_sampler_BR=logp_BR,
            scores_B=jax.ShapeDtypeStruct(given[:1], jnp.float32),
        )
    return PromptBatch(
        tokens_BP=jax.ShapeDtypeStruct((prompts, tokens), jnp.int32),
        lengths_B=jax.ShapeDtypeStruct((prompts,), jnp.int32),
        drawn=answers,
    )


def check_rollout_sizes(name: str, settings: PpoConfig | GrpoConfig, setup: Setup) -> None:
    """Raise ValueError if prompts or updates of a rollout do not fit the stage; `name` is that of its settings."""
    if setup.batch_size != settings.prompts:
        raise ValueError(
            f"batch_size {setup.batch_size} differs from task.{name}.prompts {settings.prompts}: make them equal"
        )
    if setup.steps % settings.updates:
        raise ValueError(f"steps {setup.steps} is no multiple of the {settings.updates} updates made on each rollout")


def untrained(model: Model, tx: optax.GradientTransformation) -> Callable[[jax.Array], TrainState]:
    """The state of random weights that a key gives."""
    return lambda key: initial_state(model.init(key), tx, jax.random.fold_in(key, 1))


def started_at(params: Params, tx: optax.GradientTransformation) -> Callable[[TrainState], TrainState]:
    """What puts a copy of weights in place of random ones: the reference must not be the buffers that get updated."""

    @jax.jit
    def begin(params: Params, key: jax.Array) -> TrainState:
        return initial_state(jax.tree.map(jnp.copy, params), tx, jax.random.wrap_key_data(key))

    return lambda state: begin(params, state.key)


def started(
    model: Model, tx: optax.GradientTransformation, setup: Setup, start_from: str | None
) -> Callable[[TrainState], TrainState]:
    """What puts the weights of another stage in place of random ones; the identity when there is none."""
    if start_from is None:
        return lambda state: state

    def start(state: TrainState) -> TrainState:
        params, _ = load_params(model, setup.stage_folder(start_from), setup.mesh)
        return jax.jit(lambda params, key: initial_state(params, tx, jax.random.wrap_key_data(key)))(params, state.key)

    return start


def sampler(
    model: Model, setup: Setup, tokenizer: Tokenizer, sampling: SamplingConfig
) -> Callable[[Params, PromptBatch, jax.Array, int], list[Answer]]:
    """(params, prompts, key, batch_size) -> answers, compiled once."""

    @jax.jit
    def sample(params: Params, prompts: PromptBatch, index_B: jax.Array, key: jax.Array) -> Any:
        return generate(model, params, {}, prompts, key, sampling=sampling, end_id=tokenizer.end_id, index_B=index_B)

    def run(params: Params, prompts: PromptBatch, key: jax.Array, batch_size: int) -> list[Answer]:
        return answers(
            lambda batch, index_B, key: fetch(sample(params, batch, index_B, key)),
            prompts,
            key,
            batch_size=batch_size,
            share=setup.share,
            put=partial(put, mesh=setup.mesh),
            decode=tokenizer.decode,
            end_id=tokenizer.end_id,
            multiple=batch_rows(setup.mesh),
        )

    return run
