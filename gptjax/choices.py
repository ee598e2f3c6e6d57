"""Settings that are one of a few words, other settings, or numbers of a range: their kinds are checked, and said."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any


def check_choices(config: Any, name: str = "") -> None:
    """Raise ValueError if a field declared as a Literal, or as a dataclass, holds something else.

    Args:
        config: a dataclass.
        name: of the config in messages, such as "model"; "" for the outermost one.
    """
    prefix = f"{name}." if name else ""
    words, kinds = _declared(type(config))
    for field, choices in words.items():
        value = getattr(config, field)
        if value not in choices:
            raise ValueError(f"{prefix}{field}: choose one of {', '.join(map(str, choices))}, got {value!r}")
    for field, choices in kinds.items():
        value = getattr(config, field)
        if not isinstance(value, choices):
            listed = " or ".join("None" if kind is type(None) else kind.__name__ for kind in choices)
            raise ValueError(f"{prefix}{field}: expected {listed}, got {value!r}")


def check_numbers(
    config: Any,
    name: str = "",
    *,
    at_least_1: Sequence[str] = (),
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    from_0_to_1: Sequence[str] = (),
    from_0_below_1: Sequence[str] = (),
    between_0_and_1: Sequence[str] = (),
) -> None:
    """Raise ValueError, with setting and value, if one of these fields lies outside its range; None lies in each."""
    prefix = f"{name}." if name else ""
    rules: list[tuple[Sequence[str], str, Callable[[float], bool]]] = [
        (at_least_1, "be at least 1", lambda x: x >= 1),
        (positive, "be positive", lambda x: x > 0),
        (positive, "be finite", lambda x: x < math.inf),
        (not_negative, "not be negative", lambda x: x >= 0),
        (from_0_to_1, "lie in [0, 1]", lambda x: 0 <= x <= 1),
        (from_0_below_1, "lie in [0, 1)", lambda x: 0 <= x < 1),
        (between_0_and_1, "lie between 0 and 1", lambda x: 0 < x < 1),
    ]
    for fields, rule, holds in rules:
        for field in fields:
            value = getattr(config, field)
            if value is not None and not holds(value):
                raise ValueError(f"{prefix}{field} must {rule}, got {value}")


@cache
def _declared(kind: type) -> tuple[dict[str, tuple[Any, ...]], dict[str, tuple[type, ...]]]:
    """(the words of each Literal field, the classes of each field of dataclasses)."""
    words, kinds = {}, {}
    for field, hint in typing.get_type_hints(kind).items():
        members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        if all(member is type(None) or typing.get_origin(member) is typing.Literal for member in members):
            words[field] = tuple(choice for member in members for choice in typing.get_args(member) or (None,))
        elif all(member is type(None) or dataclasses.is_dataclass(member) for member in members):
            kinds[field] = members
    return words, kinds
