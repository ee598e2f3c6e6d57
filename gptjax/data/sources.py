"""Documents and JSON objects read from files, with every bad input named by file and line."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
T = TypeVar("T", str, list[Any])
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text and where it comes from (`file`, `file:line`, or a name that the source gives it)."""

    text: str
    origin: str


def read_documents(path: str | os.PathLike[str], *, field: str = "text") -> Iterator[Document]:
    """Documents of a `.txt` (one document), a `.jsonl` (one per line), a `.gz` of either, or a folder of them.

    Args:
        path: file, or folder that is read recursively in sorted order.
        field: key of the text in JSON lines.

    Returns:
        Iterator of documents; empty texts are passed over.

    Raises:
        ValueError: a file is damaged or of another kind, a line is wrong, or there is no document at all.
    """
    found = False
    for file in document_files(Path(path)):
        for document in _jsonl_documents(file, field) if ".jsonl" in file.suffixes else _text_document(file):
            if document.text:
                found = True
                yield document
    if not found:
        raise ValueError(f"{path}: no documents: every file is empty")


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON-lines file (`.gz` too); blank lines and a byte-order mark are passed over.

    Args:
        path: the file.

    Returns:
        Iterator of (line number from 1, object).

    Raises:
        ValueError: `path:line: ...` for invalid UTF-8, bad JSON, NaN, deep nesting, a lone surrogate, or no object.
    """
    for line, raw in _lines(Path(path)):
        where = f"{path}:{line}"
        text = _decoded(raw, where)
        if text.strip():
            yield line, _json_object(text, where)


def document_files(path: Path) -> list[Path]:
    """The files that `read_documents` reads, in its order.

    Raises:
        ValueError: there are none, or a file of another kind is named.
    """
    kinds = ", ".join(SUFFIXES)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
        if not files:
            raise ValueError(f"{path}: the folder holds no file that ends in {kinds}")
        return files
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: cannot read this kind of file; expected a name that ends in {kinds}")
    return [path]


def _jsonl_documents(file: Path, field: str) -> Iterator[Document]:
    for line, record in read_jsonl(file):
        origin = f"{file}:{line}"
        yield Document(text=field_of(record, field, str, origin), origin=origin)


def field_of(record: dict[str, Any], name: str, kind: type[T], where: str) -> T:
    """The string or list `record[name]`.

    Raises:
        ValueError: it is missing or of another kind than str or list; the message begins with `where`.
    """
    if name not in record:
        raise ValueError(f"{where}: no field {name!r}; the object has {', '.join(map(repr, record)) or 'no fields'}")
    value = record[name]
    if not isinstance(value, kind):
        expected = "a string" if kind is str else "a list"
        raise ValueError(f"{where}: field {name!r}: expected {expected}, got {type(value).__name__}")
    return value


def _text_document(file: Path) -> Iterator[Document]:
    raw = b"".join(line for _, line in _lines(file))
    try:
        yield Document(text=raw.decode(), origin=str(file))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        _invalid_utf8(f"{file}:{line}", error.start - (raw.rfind(b"\n", 0, error.start) + 1))


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Raw lines, numbered from 1; without a byte-order mark."""
    line = 0
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
        try:
            for line, raw in enumerate(stream, 1):
                yield line, raw.removeprefix(_BOM) if line == 1 else raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{file}:{line + 1}: damaged gzip file: {error}") from None


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        _invalid_utf8(where, error.start)


def _invalid_utf8(where: str, byte: int) -> NoReturn:
    raise ValueError(f"{where}: invalid UTF-8 at byte {byte} of the line; convert the file to UTF-8") from None


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # only an escape can smuggle in half of a surrogate pair
            json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: bad JSON: {error.msg} at character {error.pos + 1} of the line") from None
    except UnicodeEncodeError as error:
        surrogate = ascii(error.object[error.start])
        raise ValueError(f"{where}: lone surrogate {surrogate}: no valid text holds half of a pair") from None
    except RecursionError:
        raise ValueError(f"{where}: the JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON: replace it by a number or null")
