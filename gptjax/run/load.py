"""From a Python file and overrides to a Recipe."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptjax.config import override, split_stage_args
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.modules import functions_of, module_at


def load_recipe(target: str, overrides: Sequence[str]) -> Recipe:
    """What `FILE` or `FILE:NAME` defines, with the overrides applied; a single experiment is a recipe of one stage.

    Raises:
        ValueError: no such file or name, it fails to run, or an override is wrong.
    """
    found = load(target, ["recipe", "experiment"], (Experiment, Recipe))
    recipe = found if isinstance(found, Recipe) else Recipe(name=_file(target).stem, stages={"run": found})
    arguments = split_stage_args(overrides, recipe.stages)
    stages = {}
    for stage, experiment in recipe.stages.items():
        try:
            stages[stage] = override(experiment, arguments[stage])
        except ValueError as error:
            raise ValueError(f"stage {stage}: {error}") from None
    return Recipe(name=recipe.name, stages=stages)


def load(target: str, names: list[str], kinds: tuple[type, ...]) -> Any:
    """What the function NAME of `FILE:NAME`, or the first of `names` that FILE defines, returns.

    Raises:
        ValueError: no such file or name, it fails to run, or it returns something else.
    """
    path = _file(target)
    if not path.is_file():
        raise ValueError(f"no such experiment file: {path}")
    if name := target.partition(":")[2]:
        names = [name]
    module = module_at(path)
    chosen = next((name for name in names if callable(getattr(module, name, None))), None)
    if chosen is None:
        raise ValueError(f"{path} defines no function {' or '.join(names)}; it has: {functions_of(module)}")
    function = getattr(module, chosen)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ValueError(f"{path}:{chosen} cannot be called without arguments: {error}") from None
    found = function()
    if not isinstance(found, kinds):
        wanted = " or ".join(f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}" for kind in kinds)
        raise ValueError(f"{path}:{chosen}() returned {type(found).__name__}, not {wanted}")
    return found


def _file(target: str) -> Path:
    return Path(target.partition(":")[0])
