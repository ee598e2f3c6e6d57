"""A folder of shards in an object store, fetched file by file into a cache on this machine."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from gptjax.data.shards import MANIFEST, TOKENIZER, Shards, file_sha256, read_manifest
from gptjax.files import replacing


def is_url(folder: str) -> bool:
    """Whether a folder is named by a URL, such as gs://bucket/corpus."""
    return "://" in folder


def shards_folder(folder: str) -> Path:
    """The folder itself, or for a URL the cache folder, with the manifest and the tokenizer fetched anew.

    Raises:
        ValueError: a file cannot be fetched, or the package for this kind of URL is missing.
    """
    if not is_url(folder):
        return Path(folder)
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gptjax" / "shards"
    cache = root / hashlib.sha256(folder.rstrip("/").encode()).hexdigest()[:16]
    for name in (MANIFEST, TOKENIZER):
        _fetch(folder, name, cache / name)
    return cache


def open_shards(folder: str, split: str) -> Shards:
    """The rows of a split; of a URL, each shard is fetched when it is first read, and checked against its sha256.

    Raises:
        ValueError: as `Shards`, or a file cannot be fetched.
    """
    local = shards_folder(folder)
    if not is_url(folder):
        return Shards(local, split)

    def fetched(entry: dict[str, Any]) -> Path:
        path = local / f"{entry['sha256'][:16]}-{entry['name']}"
        if not path.is_file():
            _fetch(folder, entry["name"], path, entry["sha256"])
        return path

    return Shards(local, split, local=fetched)


def tokenizer_path(folder: str) -> Path:
    """The tokenizer that the rows of a folder were made with.

    Raises:
        ValueError: it is missing, or not the one that the manifest names.
    """
    local = shards_folder(folder)
    path, manifest = local / TOKENIZER, read_manifest(local / MANIFEST)
    if not path.is_file():
        raise ValueError(f"{folder}: {TOKENIZER} is missing")
    if file_sha256(path) != manifest["tokenizer"]:
        raise ValueError(f"{folder}: {TOKENIZER} is not the one that the rows were made with")
    return path


def _fetch(folder: str, name: str, path: Path, sha256: str | None = None) -> None:
    """Copy one file here, whole or not at all; several processes may do so at once."""
    import fsspec

    source = f"{folder.rstrip('/')}/{name}"
    try:
        with replacing(path) as temporary:
            with fsspec.open(source, "rb") as remote, temporary.open("wb") as file:
                shutil.copyfileobj(remote, file, 1 << 22)  # pyright: ignore[reportArgumentType]
            if sha256 is not None and file_sha256(temporary) != sha256:
                raise ValueError(f"{source}: the shard is not what the manifest says (sha256): write it again")
    except ImportError as error:
        raise ValueError(f"{source}: {error}; for gs:// install gptjax[gcs]") from error
    except OSError as error:
        raise ValueError(f"{source}: cannot be fetched: {type(error).__name__}: {error}") from error
