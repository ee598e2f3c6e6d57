"""The record of a checkpoint: what it holds bit for bit, who wrote it, and a seal over both."""

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptjax import __version__
from gptjax.tree import layout, named_leaves

FORMAT = 1  # of checkpoints; raise it when an older gptjax could not read new ones


class DamagedError(Exception):
    """A checkpoint is not, or not wholly, what was saved."""


def sealed_record(about: Mapping[str, Any], fingerprints: Mapping[str, str], score: float | None) -> dict[str, Any]:
    """What is stored with a checkpoint, as JSON; `about` is what a resume needs besides arrays."""
    record = {"format": FORMAT, "gptjax": __version__, "about": dict(about), "fingerprints": dict(fingerprints)}
    record["score"] = score if score is not None and math.isfinite(score) else None
    return record | {"crc32": _seal(record)}


def read_record(path: Path) -> dict[str, Any]:
    """The record of the checkpoint at `path`, if it is whole and of a format that this version reads.

    Raises:
        DamagedError: there is none, or it is not as it was written.
        ValueError: a newer version of gptjax wrote it.
    """
    sealed = _json(path, "_CHECKPOINT_METADATA").get("custom_metadata")
    if not isinstance(sealed, dict) or "crc32" not in sealed:
        raise DamagedError("_CHECKPOINT_METADATA: no record of gptjax in it; it is damaged, or something else wrote it")
    record = {name: value for name, value in sealed.items() if name != "crc32"}
    if _seal(record) != sealed["crc32"]:
        raise DamagedError("_CHECKPOINT_METADATA: not what was written")
    if record["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by gptjax {record['gptjax']} in format {record['format']}; this is gptjax "
            f"{__version__}, which reads formats up to {FORMAT}: upgrade it"
        )
    return record


def check_layout(fingerprints: Mapping[str, str], wanted: Any, path: Path, *, partly: bool = False) -> None:
    """Raise ValueError, naming array and both layouts, if a checkpoint does not hold what is wanted of it.

    Args:
        fingerprints: of the checkpoint's record.
        wanted: a tree of arrays or of jax.ShapeDtypeStruct.
        path: of the checkpoint, for the message.
        partly: whether it may hold more.
    """
    leaves = named_leaves(wanted)
    if absent := [name for name in leaves if name not in fingerprints]:
        raise ValueError(f"the checkpoint {path} has no {', '.join(absent[:3])}, which this model needs")
    surplus = [name for name in fingerprints if name not in leaves]
    if surplus and not partly:
        raise ValueError(f"the checkpoint {path} is of another model: it holds {', '.join(surplus[:3])} too")
    for name, leaf in leaves.items():
        held = fingerprints[name].rpartition(" ")[0]
        if held != layout(leaf):
            raise ValueError(
                f"the checkpoint {path} is of another model: it holds {name} as {held}, where this one has "
                f"{layout(leaf)}; give the settings that it was trained with, or choose another --workdir"
            )


def check_parts(path: Path, parts: Sequence[str]) -> None:
    """Raise DamagedError if a part's list of arrays cannot be read: Orbax would not say which file it was."""
    for part in parts:
        _json(path, f"{part}/_METADATA")


def place_of(error: BaseException, path: Path) -> str:
    """What was wrong, with the file if any of the errors behind this one names it."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        if files := re.findall(r'local file "([^"]+[^"/])"', str(cause)):
            file = files[-1].removeprefix(f"{path.absolute()}/")
            return f"{file}: {str(cause).partition(':')[0]}"
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The beginning of an error's text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{name}: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{name}: no JSON object")
    return value


def _seal(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
