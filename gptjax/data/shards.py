"""Packed rows in ArrayRecord files: how a row is written, and a folder of them as a data set with random access."""

import hashlib
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from gptjax.data.loader import EVERYTHING, Share
from gptjax.data.shuffle import stream
from gptjax.files import replacing
from gptjax.types import LmBatch

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
_OPTIONS = "group_size:1,zstd:3"  # one row in a chunk: a random read decompresses nothing else
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ARRAYS = ("tokens", "targets", "segments", "positions", "weights")
_CRC = 4  # bytes at the end of a record


def layout(vocab_size: int, row_tokens: int) -> dict[str, str]:
    """NumPy dtype of each array of a row, the smallest that holds it."""
    ids = "<u2" if vocab_size <= 1 << 16 else "<u4"
    places = "<u2" if row_tokens < 1 << 16 else "<u4"
    return dict(zip(_ARRAYS, (ids, ids, places, places, "<f4"), strict=True))


def write_shard(path: Path, rows: LmBatch, fields: dict[str, str]) -> dict[str, Any]:
    """Write rows to one ArrayRecord file, whole or not at all; the same rows give the same bytes.

    A record is the arrays of a row one after the other, little-endian, and a CRC-32 of them, of the file's name and of
    the row's number: ArrayRecord itself does not notice a file that is absent, cut short at a chunk, or another one.

    Args:
        path: its name is part of every record.
        rows: arrays of NumPy.
        fields: dtype of each array, from `layout`.

    Returns:
        The shard's entry in the manifest: name, rows, tokens, bytes, sha256.
    """
    arrays = [getattr(rows, f"{name}_BT").astype(dtype) for name, dtype in fields.items()]
    with replacing(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), _OPTIONS)
        for number in range(len(rows.tokens_BT)):
            record = b"".join(array[number].tobytes() for array in arrays)
            writer.write(record + _crc(record, path.name, number))
        writer.close()
    return {
        "name": path.name,
        "rows": len(rows.tokens_BT),
        "tokens": int(np.count_nonzero(rows.segments_BT)),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }


def fingerprint(manifest: dict[str, Any]) -> str:
    """Changes when anything else in the manifest does, and so when any row does."""
    rest = {name: value for name, value in manifest.items() if name != "fingerprint"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Shards:
    """The rows of one split of a folder that `gptjax tokenize` wrote; any of them can be read at any time.

    Every row carries a checksum, so whatever happened to a file, no other row than the one that was written is
    returned.

    Args:
        folder: where the manifest and, unless `local` says otherwise, the shards are.
        split: "train" or "heldout".
        local: name of a file in the folder and its entry in the manifest -> a path that can be read.

    Attributes:
        manifest: what the folder says of itself.
        n_rows, row_tokens: int.

    Raises:
        ValueError: the manifest or a shard is missing, cut short, altered or of another version; the message names the
            file.
    """

    def __init__(self, folder: Path, split: str, *, local: Callable[[dict[str, Any]], Path] | None = None):
        self.manifest = read_manifest(folder / MANIFEST)
        if split not in self.manifest["splits"]:
            raise ValueError(f"{folder / MANIFEST}: there is no split {split!r}")
        self._folder, self._local = folder, local
        self._entries = self.manifest["splits"][split]["shards"]
        self._fields = self.manifest["fields"]
        self._readers: dict[int, ArrayRecordReader] = {}
        self._ends = np.cumsum([entry["rows"] for entry in self._entries], dtype=np.int64)
        self.n_rows = int(self._ends[-1]) if len(self._ends) else 0
        self.row_tokens: int = self.manifest["row_tokens"]
        if local is None:
            for entry in self._entries:
                _check_size(folder / entry["name"], entry)

    def batch_at(self, position: int, batch_size: int, seed: int, share: Share = EVERYTHING) -> LmBatch:
        """This host's rows of the global batch number `position`; as `gptjax.data.loader.batch_at`.

        The order is another one than that of rows in memory: it needs no table of all rows.

        Raises:
            ValueError: a shard cannot be read, or a number lies outside its range.
        """
        if position < 0 or seed < 0:
            raise ValueError(f"position {position} and seed {seed} must not be negative")
        if not self.n_rows:
            raise ValueError(f"{self._folder} has no rows to draw from")
        own = share.rows(batch_size)
        return self.rows(stream(position * batch_size, batch_size, self.n_rows, seed)[own])

    def rows(self, numbers: np.ndarray) -> LmBatch:
        """These rows, in this order.

        Args:
            numbers: i64[rows], counted through the shards.

        Raises:
            ValueError: a shard cannot be read; the message names it.
        """
        found = {f"{name}_BT": np.empty((len(numbers), self.row_tokens), _dtype(name)) for name in _ARRAYS}
        shards = np.searchsorted(self._ends, numbers, side="right")
        for shard in np.unique(shards):
            where = np.flatnonzero(shards == shard)
            first = int(self._ends[shard]) - self._entries[shard]["rows"]
            within = (numbers[where] - first).tolist()
            for place, record in zip(where, self._records(int(shard), within), strict=True):
                start = 0
                for name, dtype in self._fields.items():
                    size = np.dtype(dtype).itemsize * self.row_tokens
                    found[f"{name}_BT"][place] = np.frombuffer(record[start : start + size], dtype)
                    start += size
        return LmBatch(**found)

    def _records(self, shard: int, numbers: list[int]) -> list[bytes]:
        entry = self._entries[shard]
        path = self._folder / entry["name"]
        try:
            reader = self._readers[shard] if shard in self._readers else self._opened(shard, entry)
            records = reader.read(numbers)
        except (RuntimeError, OSError, IndexError) as error:
            raise ValueError(f"{path}: the shard cannot be read: {str(error).splitlines()[0][:150]}") from error
        whole = _CRC + self.row_tokens * sum(np.dtype(dtype).itemsize for dtype in self._fields.values())
        for number, record in zip(numbers, records, strict=True):
            payload, crc = record[:-_CRC], record[-_CRC:]
            if len(record) != whole or crc != _crc(payload, entry["name"], number):
                raise ValueError(f"{path}: row {number} is not what was written: restore the file, or tokenize again")
        return [record[:-_CRC] for record in records]

    def _opened(self, shard: int, entry: dict[str, Any]) -> ArrayRecordReader:
        path = self._folder / entry["name"] if self._local is None else self._local(entry)
        _check_size(path, entry)
        reader = ArrayRecordReader(str(path))
        if reader.num_records() != entry["rows"]:
            raise ValueError(
                f"{self._folder / entry['name']}: the shard holds {reader.num_records()} rows, the manifest says "
                f"{entry['rows']}: restore the file, or tokenize again"
            )
        self._readers[shard] = reader
        return reader


def read_manifest(path: Path) -> dict[str, Any]:
    """What a folder of shards says of itself.

    Raises:
        ValueError: it is missing, no such file, altered, or of another version.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: is this a folder that `gptjax tokenize` wrote, and has it finished?")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a manifest of shards: {error}") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ValueError(f"{path}: not a manifest of shards")
    if manifest["format"] != FORMAT:
        raise ValueError(f"{path}: format {manifest['format']!r}, but this gptjax reads format {FORMAT}")
    if manifest.get("fingerprint") != fingerprint(manifest):
        raise ValueError(f"{path}: the manifest was altered or cut short: restore it, or tokenize again")
    for split in manifest["splits"].values():
        for entry in split["shards"]:
            if not _NAME.fullmatch(entry["name"]):
                raise ValueError(f"{path}: {entry['name']!r} is no name of a shard")
    return manifest


def _check_size(path: Path, entry: dict[str, Any]) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: the shard is missing")
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path}: the shard has {path.stat().st_size} bytes, the manifest says {entry['bytes']}")


def _crc(record: bytes, name: str, number: int) -> bytes:
    return zlib.crc32(record, zlib.crc32(f"{name}:{number}".encode())).to_bytes(_CRC, "little")


def _dtype(name: str) -> type:
    return np.float32 if name == "weights" else np.int32
