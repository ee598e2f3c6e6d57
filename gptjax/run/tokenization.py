"""`gptjax tokenize`: a corpus -> packed rows in shards; in parallel, and resumable part by part."""

import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.data.heldout import hash_fraction
from gptjax.data.load_tokenizer import load_tokenizer
from gptjax.data.packing import Long, pack
from gptjax.data.shards import FORMAT, MANIFEST, TOKENIZER, file_sha256, fingerprint, layout, write_shard
from gptjax.data.sources import Document, document_files, read_documents
from gptjax.data.tokenizer import Tokenizer
from gptjax.files import write_atomically
from gptjax.run.progress import Progress

_SETTINGS = "settings.json"
_SPLITS = ("train", "heldout")


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """How text becomes rows.

    row_tokens: T.  field: of a JSON line, the text.  heldout_fraction: of the documents, never trained on.
    long: documents of more tokens are split into pieces that are all kept, truncated, or dropped.
    part_megabytes: text that is packed together into a shard of each split; it, not the number of processes, decides
    which rows there are.
    """

    row_tokens: int
    field: str = "text"
    heldout_fraction: float = 0.01
    long: Long = "split"
    part_megabytes: float = 64.0

    def __post_init__(self) -> None:
        if self.row_tokens < 2:
            raise ValueError(f"--row-tokens must be at least 2, got {self.row_tokens}")
        if not 0.0 < self.heldout_fraction < 1.0:
            raise ValueError(f"--heldout-fraction must lie between 0 and 1, got {self.heldout_fraction}")
        if self.part_megabytes <= 0:
            raise ValueError(f"--part-megabytes must be positive, got {self.part_megabytes}")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Documents that are packed together; `digest` is of their texts."""

    number: int
    documents: list[Document]
    digest: str


def tokenize(corpus: Path, folder: Path, tokenizer: Path, config: TokenizeConfig, processes: int = 1) -> dict[str, Any]:
    """Write the rows of a corpus, or go on where an interrupted call stopped; returns the manifest.

    Args:
        corpus: a .txt, .jsonl or .gz file, or a folder of them.
        folder: where the shards, the tokenizer and, last of all, the manifest go.
        tokenizer: a sentencepiece model, such as the `tokenizer.model` of a stage.
        config: see there.
        processes: that tokenise at once.

    Raises:
        ValueError: the corpus is damaged or gives no rows, or the folder was begun with another corpus or settings.
    """
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    model = load_tokenizer(tokenizer)
    _claim(folder, model, config)
    entries: dict[int, dict[str, Any]] = {}
    sizes = {str(file): file.stat().st_size for file in document_files(corpus)}
    total = sum(sizes.values())
    with _Workers(processes, folder, config) as workers, Progress("tokenize, KiB", total >> 10) as progress:
        for part, read in _parts(corpus, config, sizes):
            entries |= {entry["part"]: entry for entry in workers.submit(part)}
            progress.update(read >> 10)
        entries |= {entry["part"]: entry for entry in workers.drain()}
    manifest = _manifest([entries[number] for number in sorted(entries)], model, config)
    for split in _SPLITS:
        if not manifest["splits"][split]["rows"]:
            raise ValueError(f"{corpus}: no document fell to {split}: give more, or change --heldout-fraction")
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))
    return manifest


def tokenized_part(part: Part, folder: Path, tokenizer: Tokenizer, config: TokenizeConfig) -> dict[str, Any]:
    """Write the shards of a part and then its entry, unless they are there already and whole.

    Raises:
        ValueError: the part was made from other text.
    """
    path = folder / f"part-{part.number:05d}.json"
    if path.exists():
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["digest"] != part.digest:
            first = part.documents[0].origin
            raise ValueError(f"{folder} was begun with another corpus; it differs from {first} on: take another folder")
        if all(entry[split]["shard"] is None or _is_whole(folder, entry[split]["shard"]) for split in _SPLITS):
            return entry
    entry = {"part": part.number, "digest": part.digest} | {
        split: _written(folder / f"{split}-{part.number:05d}.array_record", documents, tokenizer, config)
        for split, documents in _split(part.documents, config.heldout_fraction).items()
    }
    write_atomically(path, json.dumps(entry))
    return entry


def _written(path: Path, documents: list[Document], tokenizer: Tokenizer, config: TokenizeConfig) -> dict[str, Any]:
    """Pack and write one split of a part; `shard` is None if no row comes of it."""
    ids = [tokenizer.document(document.text) for document in documents]
    kept = [row for row in ids if config.long != "drop" or len(row) <= config.row_tokens]
    about = {
        "documents": len(documents),
        "text_bytes": sum(len(document.text.encode()) for document in documents),
        "dropped_tokens": sum(map(len, ids)) - sum(map(len, kept)),
    }
    if not kept:
        return about | {"shard": None}
    rows, report = pack(kept, config.row_tokens, pad_id=tokenizer.pad_id, long=config.long)
    about["dropped_tokens"] += report.dropped_tokens
    return about | {"shard": write_shard(path, rows, layout(tokenizer.vocab_size, config.row_tokens))}


def _split(documents: list[Document], heldout_fraction: float) -> dict[str, list[Document]]:
    """By a hash of the text, so that equal documents fall to one side."""
    found: dict[str, list[Document]] = {split: [] for split in _SPLITS}
    for document in documents:
        found["heldout" if hash_fraction(document.text) < heldout_fraction else "train"].append(document)
    return found


class _Workers:
    """Tokenises parts in other processes, a few ahead; with one process, here."""

    def __init__(self, processes: int, folder: Path, config: TokenizeConfig):
        self._work: Callable[[Part], dict[str, Any]]
        self._pool, self._ahead = None, 2 * processes
        self._pending: list[Future] = []
        if processes == 1:
            _prepare(folder, config)
        else:
            context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would lose
            self._pool = ProcessPoolExecutor(processes, context, _prepare, (folder, config))

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, part: Part) -> Iterator[dict[str, Any]]:
        """Hand a part over; gives the entries of those that had to be waited for."""
        if self._pool is None:
            yield _run(part)
            return
        self._pending.append(self._pool.submit(_run, part))
        while len(self._pending) > self._ahead:
            yield self._pending.pop(0).result()

    def drain(self) -> Iterator[dict[str, Any]]:
        """The entries of the parts that are under way."""
        while self._pending:
            yield self._pending.pop(0).result()


_PREPARED: tuple[Path, Tokenizer, TokenizeConfig] | None = None  # of this process


def _prepare(folder: Path, config: TokenizeConfig) -> None:
    global _PREPARED
    _PREPARED = folder, load_tokenizer(folder / TOKENIZER), config


def _run(part: Part) -> dict[str, Any]:
    assert _PREPARED is not None
    folder, tokenizer, config = _PREPARED
    return tokenized_part(part, folder, tokenizer, config)


def _parts(corpus: Path, config: TokenizeConfig, sizes: dict[str, int]) -> Iterator[tuple[Part, int]]:
    """The corpus cut into parts, and about how many bytes of the files were read up to the end of each."""
    number, documents, held, digest = 0, [], 0, hashlib.sha256()
    file, before, within = "", 0, 0  # the file that is read, bytes of those before it, bytes of text from it
    for document in read_documents(corpus, field=config.field):
        text = document.text.encode()
        source = document.origin if document.origin in sizes else document.origin.rpartition(":")[0]
        if source != file:
            file, before, within = source, before + sizes.get(file, 0), 0
        within += len(text)
        documents.append(document)
        held += len(text)
        digest.update(len(text).to_bytes(8, "little") + text)
        if held >= config.part_megabytes * 1e6:
            yield (
                Part(number=number, documents=documents, digest=digest.hexdigest()),
                before + min(within, sizes[file]),
            )
            number, documents, held, digest = number + 1, [], 0, hashlib.sha256()
    if documents:
        yield Part(number=number, documents=documents, digest=digest.hexdigest()), sum(sizes.values())


def _claim(folder: Path, tokenizer: Tokenizer, config: TokenizeConfig) -> None:
    """Write what the folder is going to hold, or see that it was begun with the same settings."""
    settings = dataclasses.asdict(config) | {"format": FORMAT, "tokenizer": tokenizer.fingerprint}
    path = folder / _SETTINGS
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{key} {theirs.get(key)} then, {now} now" for key, now in settings.items() if theirs.get(key) != now
        ]
        if changed:
            raise ValueError(f"{folder} was begun with other settings ({'; '.join(changed)}): take another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and was not written by `gptjax tokenize`: take another folder")
    write_atomically(path, json.dumps(settings, indent=1))  # first: killed here, the folder is still this call's
    tokenizer.save(folder / TOKENIZER)


def _manifest(entries: list[dict[str, Any]], tokenizer: Tokenizer, config: TokenizeConfig) -> dict[str, Any]:
    splits = {}
    for split in _SPLITS:
        parts = [entry[split] for entry in entries]
        shards = [part["shard"] for part in parts if part["shard"] is not None]
        rows, tokens = (sum(shard[name] for shard in shards) for name in ("rows", "tokens"))
        about = {name: sum(part[name] for part in parts) for name in ("documents", "text_bytes", "dropped_tokens")}
        fill = tokens / max(rows * config.row_tokens, 1)
        splits[split] = about | {"rows": rows, "tokens": tokens, "fill": fill, "shards": shards}
    manifest = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "row_tokens": config.row_tokens,
        "long": config.long,
        "heldout_fraction": config.heldout_fraction,
        "fields": layout(tokenizer.vocab_size, config.row_tokens),
        "splits": splits,
    }
    return manifest | {"fingerprint": fingerprint(manifest)}


def _is_whole(folder: Path, shard: dict[str, Any]) -> bool:
    path = folder / shard["name"]
    return path.is_file() and path.stat().st_size == shard["bytes"] and file_sha256(path) == shard["sha256"]
