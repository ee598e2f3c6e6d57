"""Runs chosen lines of an installed function, so that maths inside a peer's one long method is called, not copied."""

import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any


def excerpt(function: Callable, first: str, last: str) -> Callable[..., dict[str, Any]]:
    """The lines of `function` from the one that begins with `first` to the next one that begins with `last`.

    Returns:
        run(**names) -> every name as it stands after those lines, which see `names` and the globals of their module.

    Raises:
        LookupError: there are no such lines, or two places where they could begin.
    """
    function = inspect.unwrap(function)
    source = inspect.getsource(function).splitlines()
    begins = [number for number, line in enumerate(source) if line.strip().startswith(first)]
    if len(begins) != 1:
        raise LookupError(f"{len(begins)} lines of {function.__qualname__} begin with {first!r}, expected one")
    ends = [number for number in range(begins[0], len(source)) if source[number].strip().startswith(last)]
    if not ends:
        raise LookupError(f"no line of {function.__qualname__} after {first!r} begins with {last!r}")
    code = compile(textwrap.dedent("\n".join(source[begins[0] : ends[0] + 1])), function.__qualname__, "exec")

    def run(**names: Any) -> dict[str, Any]:
        scope = vars(sys.modules[function.__module__]) | names
        exec(code, scope)
        return scope

    return run
