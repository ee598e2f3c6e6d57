"""What of a task follows from its settings alone: fresh models, and the shapes of its batches."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.model_types import Model, ScalarModel
from gptjax.optim.optimizer import optimizer
from gptjax.run.task import Outline, Setup
from gptjax.train.update import initial_state
from gptjax.types import Drawn, LmBatch, Metrics, Params, PromptBatch, TrainState

_AModel = TypeVar("_AModel", Model, ScalarModel)


def trained_model(
    setup: Setup, make: Callable[[ModelConfig], _AModel] = language_model
) -> tuple[_AModel, optax.GradientTransformation]:
    """The model that a stage trains, of the kind that `make` makes, and its optimizer."""
    model = make(setup.model)
    return model, optimizer(setup.optimizer, setup.steps, model.roles, model.letters, model.ratios)


def first_state(params: Params, tx: optax.GradientTransformation, key: jax.Array, **extra: Any) -> TrainState:
    """The state before the first update of a run with this key, from which random weights are drawn too.

    Args:
        params, tx, extra: as for `initial_state`.
        key: the run's, as `Task.init` and `Task.start` get it.
    """
    return initial_state(params, tx, jax.random.fold_in(key, 1), **extra)


def untrained(model: Model, tx: optax.GradientTransformation) -> Callable[[jax.Array], TrainState]:
    """The state of random weights that a key gives."""
    return lambda key: first_state(model.init(key), tx, key)


def fresh_reward(reward_from: str | None, scalar: ScalarModel, key: jax.Array) -> dict[str, Any]:
    """What `reward_model` gives, never trained."""
    if reward_from is None:
        return {}
    return {"reward": scalar.init(key), "reward_gain": jnp.ones(()), "reward_bias": jnp.zeros(())}


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
