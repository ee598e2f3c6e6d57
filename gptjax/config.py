"""The text form and the typed overrides of any frozen, keyword-only, nested dataclass config.

A leaf is named by its path of field names, `mesh.fsdp`; elements of a tuple of dataclasses by number, `sources.0.path`.
An option is a leaf's path after two dashes, `--mesh.fsdp 4`; it belongs to one leaf and keeps every class as it is.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gptjax.options import Leaf, Option, listed, options, parsed, resolve, unknown

_C = TypeVar("_C")


def override(config: _C, args: Sequence[str]) -> _C:
    """A copy of `config` with command-line options applied; the last of repeated options wins.

    Args:
        config: a frozen dataclass; nested dataclasses and members of unions keep their own class.
        args: such as ["--mesh.fsdp", "4", "--optimizer.peak-lr=3e-4", "--data.no-shuffle"]; hyphens and underscores are
            the same, a value may begin with one dash. `--help` prints every option and exits, as tyro does.

    Returns:
        A config of the same class, validated again wherever a field changed.

    Raises:
        ValueError: an unknown option, an ill-typed value, or a `__post_init__` that refuses the new values.
    """
    if {"--help", "-h"} & set(args):
        import tyro

        tyro.cli(type(config), default=config, args=["--help"], config=(tyro.conf.AvoidSubcommands,))
    leaves = _leaves(config)
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for option in options(args):
        path = resolve(option.name, leaves)
        if path is None:
            raise ValueError(unknown(option, leaves))
        values[path] = parsed(option, path, leaves[path])
        given[path] = " ".join(option.tokens)
    return _rebuilt(config, "", values, given)


def split_stage_args(args: Sequence[str], stages: Mapping[str, Any]) -> dict[str, list[str]]:
    """The options of each stage of a recipe: `--mesh.fsdp 4` is for all stages, `--stages.sft.mesh.fsdp 2` for one.

    Args:
        args: options as in `override`.
        stages: the config of each stage by name, in order; they say which options a stage has.

    Returns:
        Arguments for `override` by stage. A stage's own options come last, so they win over those for all stages.

    Raises:
        ValueError: an unknown stage, an option that no stage has, or one for all stages that only some have.
    """
    leaves = {stage: _leaves(config) for stage, config in stages.items()}
    shared: list[str] = []
    own: dict[str, list[str]] = {stage: [] for stage in stages}
    for option in options(args):
        if option.name == "stages" or option.name.startswith("stages."):
            stage, option = _stage_option(option, list(stages))
            if resolve(option.name, leaves[stage]) is None:
                raise ValueError(f"stage {stage!r}: {unknown(option, leaves[stage])}")
            own[stage] += option.tokens
        else:
            _check_shared(option, leaves)
            shared += option.tokens
    return {stage: shared + tokens for stage, tokens in own.items()}


def to_text(config: Any) -> str:
    """The config as one line per leaf, `mesh.fsdp = 4`, in field order; saved with a run and used as golden text.

    Args:
        config: a frozen dataclass.

    Returns:
        The lines, the last one ended too. A member of a union of classes adds a line with its name, `task = LmTask`.
    """
    text = ""
    for path, node in _walk(Leaf(config, type(config))):
        if not _is_branch(node):
            text += f"{path} = {_text(node.value)}\n"
        elif _is_member(node):
            text += f"{path} = {type(node.value).__name__}\n"
    return text


def _children(value: Any, annotation: Any) -> dict[str, Leaf]:
    """Fields of a dataclass or elements of a tuple of dataclasses; nothing for a leaf."""
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: Leaf(getattr(value, name), hints[name]) for name in fields}
    if isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
        args = typing.get_args(_members(annotation)[0])
        kinds = args if len(args) == len(value) and Ellipsis not in args else (args[:1] or (object,)) * len(value)
        return {str(i): Leaf(value[i], kind) for i, kind in enumerate(kinds)}
    return {}


def _walk(node: Leaf, path: str = "") -> Iterator[tuple[str, Leaf]]:
    yield path, node
    for name, child in _children(node.value, node.annotation).items():
        yield from _walk(child, f"{path}.{name}" if path else name)


def _leaves(config: Any) -> dict[str, Leaf]:
    walk = _walk(Leaf(config, type(config)))
    return {path: node for path, node in walk if not _is_branch(node)}


def _is_branch(node: Leaf) -> bool:
    return dataclasses.is_dataclass(node.value) or bool(_children(node.value, node.annotation))


def _is_member(node: Leaf) -> bool:
    """Whether the annotation alone does not say which dataclass this is."""
    return dataclasses.is_dataclass(node.value) and _members(node.annotation) != [type(node.value)]


def _members(annotation: Any) -> list[Any]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [a for a in (typing.get_args(annotation) if is_union else (annotation,)) if a is not type(None)]


def _text(value: Any) -> str:
    if isinstance(value, Path):
        return repr(value.as_posix())
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    if hasattr(value, "__qualname__"):  # a function or class, whose repr may hold an address
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def _stage_option(option: Option, stages: list[str]) -> tuple[str, Option]:
    """Take `stages.NAME.` off an option."""
    by_name = {stage.replace("-", "_"): stage for stage in stages}
    _, name, rest = (*option.name.split(".", 2), "", "")[:3]
    if name not in by_name or not rest:
        problem = "names no option" if name in by_name else f"no stage {name!r}"
        raise ValueError(f"{option.flag}: {problem}; write --stages.NAME.OPTION with NAME one of {listed(stages)}")
    first = "--" + option.tokens[0].split(".", 2)[2]
    return by_name[name], Option(rest, option.values, [first, *option.tokens[1:]])


def _check_shared(option: Option, leaves: Mapping[str, Mapping[str, Leaf]]) -> None:
    """Refuse an option that not every stage has."""
    have = [stage for stage in leaves if resolve(option.name, leaves[stage]) is not None]
    if not have:
        raise ValueError(unknown(option, {path: node for nodes in leaves.values() for path, node in nodes.items()}))
    if len(have) < len(leaves):
        example = f"--stages.{have[0]}.{option.flag[2:]}"
        raise ValueError(f"{option.flag}: only stage {listed(have)} of this recipe has it; write {example}")


def _rebuilt(value: Any, path: str, values: Mapping[str, Any], given: Mapping[str, str]) -> Any:
    """The tree with the new leaves in it; what has none stays the same object."""
    if path in values:
        return values[path]
    old = {name: child.value for name, child in _children(value, type(value)).items()}
    new = {name: _rebuilt(v, f"{path}.{name}" if path else name, values, given) for name, v in old.items()}
    changed = {name: v for name, v in new.items() if v is not old[name]}
    if not changed:
        return value
    if isinstance(value, tuple):
        return tuple(new.values())
    try:
        return dataclasses.replace(value, **changed)
    except ValueError as error:
        options = " ".join(text for leaf, text in given.items() if not path or leaf.startswith(f"{path}."))
        raise ValueError(f"{path + ': ' if path else ''}{error} (set by {options})") from error
