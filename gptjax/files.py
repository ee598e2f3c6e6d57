"""Files that are whole or absent: written beside their place, then moved there in one step."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of `path`, or becomes it, once the block has ended well.

    A block that fails, or a process that is killed in it, leaves the old file as it was. Several processes may write
    the same file at once, on several hosts too. The folder is made if it is not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # hosts may share folder and process number
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is whole or absent."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
