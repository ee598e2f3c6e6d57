"""A corpus of code: every source file of the standard library of this Python, tests included, split by file."""

import functools
import string
import sysconfig
from pathlib import Path
from typing import Literal

from gptjax.data.heldout import hash_fraction
from gptjax.data.sources import Document

SMALLEST, LARGEST = 200, 400_000  # bytes: below is boilerplate, above are generated tables
_LETTERS = 0.4  # share of letters, below which a file is data


def source_documents(split: Literal["train", "heldout"], fraction: float = 0.015) -> list[Document]:
    """Source files of one split, without exact repeats.

    Args:
        split: which side; a file's side depends on its text alone.
        fraction: share of the files that is held out.

    Returns:
        Documents in the order of their paths; `origin` is the path within the library.

    Raises:
        ValueError: this Python came without sources.
    """
    found = [document for document, place in _files() if (place < fraction) == (split == "heldout")]
    if not found:
        raise ValueError(f"the library of this Python has no source files for the {split} split: give a corpus")
    return found


@functools.cache
def _files() -> tuple[tuple[Document, float], ...]:
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[bytes] = set()
    found = []
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages"} & set(path.parts):
            continue
        raw = path.read_bytes()
        if raw in seen or not _usable(raw):
            continue
        seen.add(raw)
        document = Document(text=raw.decode(), origin=path.relative_to(root).as_posix())
        found.append((document, hash_fraction(document.text)))
    return tuple(found)


def _usable(raw: bytes) -> bool:
    if not SMALLEST <= len(raw) <= LARGEST:
        return False
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return len(raw) - len(raw.translate(None, string.ascii_letters.encode())) >= _LETTERS * len(raw)
