"""Python files and what they define, by name."""

import importlib.util
from pathlib import Path
from types import ModuleType


def module_at(path: Path) -> ModuleType:
    """The module that a Python file defines, executed anew.

    Raises:
        ValueError: no such file, or it fails to run.
    """
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def functions_of(module: ModuleType) -> str:
    """The names that a module itself defines, as a list for a message."""
    names = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return ", ".join(sorted(names)) or "none"
