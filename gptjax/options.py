"""Command-line options: cut from the arguments, matched to the leaves of a config, read as typed values."""

import contextlib
import dataclasses
import difflib
import io
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_NAMES_SHOWN = 8


class Leaf(NamedTuple):
    """A value of a config with its declared type."""

    value: Any
    annotation: Any


class Option(NamedTuple):
    """One option: its path with underscores (perhaps `no_` before the last part), values, and tokens as typed."""

    name: str
    values: list[str]
    tokens: list[str]

    @property
    def flag(self) -> str:
        """The option as typed, without a value."""
        return self.tokens[0].partition("=")[0]


def options(args: Sequence[str]) -> Iterator[Option]:
    """Cut the arguments at every token that begins with two dashes.

    Args:
        args: such as ["--mesh.fsdp", "4", "--seed=-3"]; what begins with one dash is a value.

    Returns:
        The options in order.

    Raises:
        ValueError: a value comes before the first option.
    """
    option = None
    for token in args:
        if token.startswith("--"):
            if option:
                yield option
            name, equals, value = token[2:].partition("=")
            option = Option(name.replace("-", "_"), [value] if equals else [], [token])
        elif option:
            option.values.append(token)
            option.tokens.append(token)
        else:
            raise ValueError(f"{token!r} belongs to no option: write --name value")
    if option:
        yield option


def resolve(name: str, leaves: Mapping[str, Leaf]) -> str | None:
    """The path of the leaf that an option sets: its own name or, for a boolean, the name without `no_`."""
    parent, dot, last = name.rpartition(".")
    positive = parent + dot + last.removeprefix("no_")
    if name in leaves:
        return name
    return positive if positive in leaves and leaves[positive].annotation is bool else None


def parsed(option: Option, path: str, leaf: Leaf) -> Any:
    """The option's values, read by tyro as the type of the leaf.

    Args:
        option: the option.
        path: the leaf's path; differs from the option's name for `--no-flag`.
        leaf: its value and type.

    Returns:
        The new value of the leaf.

    Raises:
        ValueError: the values are not of the type, or the type is one that tyro cannot read from text.
    """
    import tyro

    flag = "--value" if option.name == path else "--no-value"
    args = [f"{flag}={option.values[0]}"] if len(option.values) == 1 else [flag, *option.values]
    holder = dataclasses.make_dataclass("Option", [("value", leaf.annotation)])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(holder, default=holder(leaf.value), args=args, add_help=False, console_outputs=False).value
    except SystemExit:
        raise ValueError(f"{option.flag}: {_misfit(option, path, leaf)}") from None


def unknown(option: Option, leaves: Mapping[str, Leaf]) -> str:
    """The message for an option that matches no leaf, with the nearest names that exist."""
    prefix = option.name
    inside = list(leaves)
    while prefix := prefix.rpartition(".")[0]:
        if prefix in leaves:
            return f"{option.flag}: {prefix} is {leaves[prefix].value!r} here and has no parts to set"
        if below := [path for path in leaves if path.startswith(f"{prefix}.")]:
            inside = below
            break
    near = difflib.get_close_matches(option.name, leaves, n=3)
    label, names = ("did you mean", near) if near else ("there are", inside)
    return f"{option.flag}: no such option; {label} {listed(['--' + name.replace('_', '-') for name in names])}"


def listed(names: Sequence[Any]) -> str:
    """The first names, comma-separated, and how many more there are."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(map(str, names[:_NAMES_SHOWN])) + more


def _misfit(option: Option, path: str, leaf: Leaf) -> str:
    got = repr(" ".join(option.values)) if option.values else "no value"
    parent, dot, last = path.replace("_", "-").rpartition(".")
    if leaf.annotation is bool:
        return f"takes no value, got {got}; write --{parent}{dot}{last} or --{parent}{dot}no-{last}"
    choices = typing.get_args(leaf.annotation) if typing.get_origin(leaf.annotation) is typing.Literal else ()
    return f"expected {f'one of {listed(choices)}' if choices else _type_name(leaf.annotation)}, got {got}"


def _type_name(annotation: Any) -> str:
    plain = isinstance(annotation, type) and not typing.get_args(annotation)
    return annotation.__name__ if plain else re.sub(r"\w+\.(?=\w)", "", str(annotation))
