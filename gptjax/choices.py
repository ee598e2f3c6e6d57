"""Settings that are one of a few words."""

import types
import typing
from functools import cache
from typing import Any


def check_choices(config: Any, name: str) -> None:
    """Raise ValueError if a field that is declared as a Literal holds something else.

    Args:
        config: a dataclass.
        name: of the config in messages, such as "model".
    """
    for field, choices in _choices(type(config)).items():
        value = getattr(config, field)
        if value not in choices:
            raise ValueError(f"{name}.{field}: choose one of {', '.join(map(str, choices))}, got {value!r}")


@cache
def _choices(kind: type) -> dict[str, tuple[Any, ...]]:
    found = {}
    for field, hint in typing.get_type_hints(kind).items():
        members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        if all(member is type(None) or typing.get_origin(member) is typing.Literal for member in members):
            found[field] = tuple(choice for member in members for choice in typing.get_args(member) or (None,))
    return found
