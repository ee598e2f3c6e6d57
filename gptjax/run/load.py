"""From a Python file and overrides to a Recipe."""

from collections.abc import Sequence
from pathlib import Path

from gptjax.config import override, split_stage_args
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.modules import functions_of, module_at


def load_recipe(target: str, overrides: Sequence[str]) -> Recipe:
    """What `FILE` or `FILE:NAME` defines, with the overrides applied; a single experiment is a recipe of one stage.

    Raises:
        ValueError: no such file or name, it fails to run, or an override is wrong.
    """
    file, _, name = target.partition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"no such experiment file: {path}")
    found = _call(path, name)
    recipe = found if isinstance(found, Recipe) else Recipe(name=path.stem, stages={"run": found})
    arguments = split_stage_args(overrides, recipe.stages)
    stages = {}
    for stage, experiment in recipe.stages.items():
        try:
            stages[stage] = override(experiment, arguments[stage])
        except ValueError as error:
            raise ValueError(f"stage {stage}: {error}") from None
    return Recipe(name=recipe.name, stages=stages)


def _call(path: Path, name: str) -> Experiment | Recipe:
    module = module_at(path)
    names = [name] if name else ["recipe", "experiment"]
    function = next((getattr(module, n) for n in names if callable(getattr(module, n, None))), None)
    if function is None:
        raise ValueError(f"{path} defines no function {' or '.join(names)}; it has: {functions_of(module)}")
    found = function()
    if not isinstance(found, Experiment | Recipe):
        raise ValueError(f"{path}:{names[0]}() returned {type(found).__name__}, not an Experiment or a Recipe")
    return found
