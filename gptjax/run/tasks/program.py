"""A reward that is a program: found by its name, asked on the host about every answer.

    def reward(prompt, answer, ended):                 # in FILE.py; the setting is program = "FILE.py:reward"
        return float(ended and answer == prompt["sum"])

`prompt` is the line of the file of prompts, `answer` a text, `ended` whether the policy ended its turn by itself. The
result is a number, or a mapping with the number under "reward" and others that are reported beside it.
"""

import importlib
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import jax
import numpy as np
from jax.sharding import NamedSharding

from gptjax import dims
from gptjax.data.loader import row_indices
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.answers import Answer, answers_in
from gptjax.generate.engine import SamplingConfig
from gptjax.model_types import Model
from gptjax.run.hosts import from_first
from gptjax.run.mesh import fetch
from gptjax.run.modules import functions_of, module_at
from gptjax.run.task import Setup
from gptjax.train.group_rollout import repeated
from gptjax.train.rollout import draw
from gptjax.types import Params, PromptBatch

Reward: TypeAlias = Callable[[Mapping[str, Any], str, bool], float | Mapping[str, float]]
Answering: TypeAlias = Callable[[Params, Params, PromptBatch, jax.Array, int], PromptBatch]


def reward_program(name: str) -> Reward:
    """The function called FILE.py:NAME or MODULE:NAME.

    Raises:
        ValueError: there is no such file, module or function, or it fails to run.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        raise ValueError(f"task.program {name!r}: write FILE.py:NAME or MODULE:NAME")
    try:
        module = module_at(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ValueError, ImportError) as error:
        raise ValueError(f"task.program {name!r}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"task.program {name!r}: {place} has no function {function}; it has {functions_of(module)}")
    return cast(Reward, found)


def program_figures(
    program: Reward, records: Sequence[Mapping[str, Any]], answers: Sequence[Answer]
) -> dict[str, np.ndarray]:
    """What a program says of answers: f64[B] by name, "reward" among them; NaN leaves an answer out of training.

    Args:
        program: the function.
        records: the line of the file of prompts, for each answer.
        answers: what it judges.

    Raises:
        ValueError: it fails on an answer, or its result is neither a number nor a mapping as described above.
    """
    judged = [_judged(program, *pair) for pair in zip(records, answers, strict=True)]
    names = judged[0].keys() if judged else {"reward": 0.0}.keys()
    if different := next((found for found in judged if found.keys() != names), None):
        raise ValueError(f"{_name(program)} gives {sorted(names)} for one answer and {sorted(different)} for another")
    return {name: np.array([found[name] for found in judged], np.float64) for name in names}


def _judged(program: Reward, record: Mapping[str, Any], answer: Answer) -> dict[str, float]:
    about = f"{_name(program)} on the answer {answer.text[:80]!r}"
    try:
        found = program(record, answer.text, answer.ended)
    except Exception as error:
        raise ValueError(f"{about} failed: {type(error).__name__}: {error}") from error
    figures = dict(found) if isinstance(found, Mapping) else {"reward": found}
    if "reward" not in figures:
        raise ValueError(f"{about} gave no 'reward' but {sorted(figures)}")
    for name, value in figures.items():
        if not isinstance(value, numbers.Real | np.bool_) or math.isinf(value):
            raise ValueError(f"{about} gave {name} {value!r}: expected a finite number, or NaN for an answer to skip")
    return {name: float(value) for name, value in figures.items()}


def _name(program: Reward) -> str:
    return f"program {getattr(program, '__qualname__', program)}"


def answering(
    program: str | None,
    records: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    policy: Model,
    setup: Setup,
    sampling: SamplingConfig,
    *,
    group_size: int = 1,
) -> Answering | None:
    """(params, frozen, prompts, key, position) -> the prompts with the policy's answers and the program's scores.

    Args:
        program: name of the reward (None: there is a reward model, which is asked within the rollout).
        records: one for each prompt of the data set.
        tokenizer: decodes answers.
        policy: the language model.
        setup: of the stage; prompts are batch number `position` of the data set by its seed.
        sampling: how to sample.
        group_size: answers to each prompt.
    """

    if program is None:
        return None
    reward = reward_program(program)

    @jax.jit
    def sample(params, frozen, prompts, key):
        rows = prompts if group_size == 1 else repeated(prompts, group_size)
        return draw(params, frozen, rows, key, policy=policy, sampling=sampling, end_id=tokenizer.end_id)

    def answered(params: Params, frozen: Params, prompts: PromptBatch, key: jax.Array, position: int) -> PromptBatch:
        drawn = sample(params, frozen, prompts, key)
        tokens_BR, mask_BR = fetch((drawn.tokens_BR, drawn.mask_BR))
        found = answers_in(tokens_BR, mask_BR, tokenizer)
        rows_B = row_indices(len(records), position * setup.batch_size, setup.batch_size, setup.seed)
        asked = [records[row] for row in np.repeat(rows_B, group_size)]
        scores_B = from_first(program_figures(reward, asked, found)["reward"].astype(np.float32))
        layout = NamedSharding(setup.mesh, dims.act_spec("B"))
        placed_B = jax.make_array_from_callback(scores_B.shape, layout, scores_B.__getitem__)
        return replace(prompts, drawn=replace(drawn, scores_B=placed_B))

    return answered
