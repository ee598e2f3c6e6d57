"""The corpus of pre-training: read, partly held out, tokenised, packed into rows; for every objective on plain text."""

import dataclasses
import functools
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.choices import check_numbers
from gptjax.data import python_docs
from gptjax.data.byte_tokenizer import ByteTokenizer
from gptjax.data.heldout import hash_fraction
from gptjax.data.load_tokenizer import load_tokenizer
from gptjax.data.packing import Long, PackingReport, pack
from gptjax.data.python_source import source_documents
from gptjax.data.sources import Document, read_documents
from gptjax.data.tokenizer import Tokenizer, train_tokenizer
from gptjax.run.hosts import on_first
from gptjax.run.progress import status
from gptjax.run.task import Setup
from gptjax.run.tasks.upstream import check_model, inherited
from gptjax.types import LmBatch


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where the text comes from and how it becomes rows.

    corpus: a .txt, .jsonl or .gz file or a folder of them; None: the documentation of the Python that runs this.
    field: of a JSON line, the text.  include_source: with the default corpus, library source code too.
    source_only: with the default corpus, nothing but library source code, tests of the library included.
    heldout_fraction: of the corpus, never trained on; with the default corpus always 0.1, of its modules.
    tokenizer: a sentencepiece model; None: that of the stage started from, else one is trained on the corpus with
    model.vocab_size tokens.
    byte_tokens: a token is a byte, and model.vocab_size is 256; no tokenizer is trained.
    row_tokens: T.  long: documents of more tokens are split into pieces that are all kept, truncated, or dropped.
    """

    corpus: Path | None = None
    field: str = "text"
    include_source: bool = True
    source_only: bool = False
    heldout_fraction: float = python_docs.HELDOUT_FRACTION
    tokenizer: Path | None = None
    byte_tokens: bool = False
    row_tokens: int = 256
    long: Long = "split"

    def __post_init__(self) -> None:
        check_numbers(self, "task", between_0_and_1=("heldout_fraction",))
        if self.row_tokens < 2:
            raise ValueError(f"task.row_tokens must be at least 2, got {self.row_tokens}")
        if self.source_only and self.corpus is not None:
            raise ValueError(f"task.source_only is about the default corpus, but task.corpus is {self.corpus}")
        if self.byte_tokens and self.tokenizer is not None:
            raise ValueError(f"task.byte_tokens clashes with task.tokenizer {self.tokenizer}: give one")
        if self.corpus is None and not self.source_only:
            check_library_split(self.heldout_fraction)


class Corpus(NamedTuple):
    """Documents and the rows that they were packed into; `packing` is the report of the training rows."""

    train: list[Document]
    heldout: list[Document]
    tokenizer: Tokenizer
    rows: LmBatch
    heldout_rows: LmBatch
    packing: PackingReport

    @property
    def fingerprint(self) -> str:
        """Changes when a document, their split or the tokenizer does."""
        return f"{python_docs.fingerprint([*self.train, *self.heldout])[:16]}-{self.tokenizer.fingerprint[:16]}"

    @property
    def figures(self) -> dict[str, Any]:
        """What a stage's result says of packing."""
        return {f"packing_{name}": value for name, value in dataclasses.asdict(self.packing).items()}


def read_corpus(config: CorpusConfig, setup: Setup, start_from: str | None) -> Corpus:
    """The corpus with its tokenizer at hand and its rows packed.

    Args:
        config: what to read.
        setup: of the stage.
        start_from: stage or folder whose model and tokenizer this stage goes on with (None: from scratch).

    Raises:
        ValueError: the text is too little or damaged, or the tokenizer or the model that `start_from` trained does not
            fit.
    """
    if start_from is not None:
        check_model(setup.stage_folder(start_from), setup.model)  # before minutes of reading
    if config.source_only and config.byte_tokens and start_from is None:
        found = _library_bytes(config.heldout_fraction, config.row_tokens, config.long)
        corpus_tokenizer(config, setup, start_from, found.train)
        return found
    with status("reading the corpus"):
        train, heldout = corpus(config)
    with status("preparing the tokenizer"):
        tokenizer = corpus_tokenizer(config, setup, start_from, train)
    return _packed(config, train, heldout, tokenizer)


@functools.lru_cache(maxsize=1)
def _library_bytes(heldout_fraction: float, row_tokens: int, long: Long) -> Corpus:
    """The library's source as bytes, which no setting of a stage changes: the stages of a sweep share it."""
    config = CorpusConfig(
        source_only=True, byte_tokens=True, heldout_fraction=heldout_fraction, row_tokens=row_tokens, long=long
    )
    with status("reading the library's source"):
        train, heldout = corpus(config)
    return _packed(config, train, heldout, ByteTokenizer())


def _packed(config: CorpusConfig, train: list[Document], heldout: list[Document], tokenizer: Tokenizer) -> Corpus:
    with status("packing rows"):
        rows, report = packed_rows(train, tokenizer, config)
        heldout_rows, _ = packed_rows(heldout, tokenizer, config)
    return Corpus(train, heldout, tokenizer, rows, heldout_rows, report)


def corpus(config: CorpusConfig) -> tuple[list[Document], list[Document]]:
    """(training documents, held-out documents)."""
    if config.source_only:
        fraction = config.heldout_fraction
        return source_documents("train", fraction), source_documents("heldout", fraction)
    if config.corpus is None:
        train = python_docs.documents("train", include_source=config.include_source)
        return train, python_docs.documents("heldout")
    documents = [
        Document(text=piece, origin=document.origin)
        for document in read_documents(config.corpus, field=config.field)
        for piece in pieces(document.text)
    ]
    heldout = [document for document in documents if hash_fraction(document.text) < config.heldout_fraction]
    train = [document for document in documents if hash_fraction(document.text) >= config.heldout_fraction]
    if not heldout or not train:
        raise ValueError(
            f"{config.corpus}: {len(documents)} documents are too few to hold {config.heldout_fraction:.0%} of them "
            "out: split the text into more documents, or change task.heldout_fraction"
        )
    return train, heldout


def check_library_split(heldout_fraction: float) -> None:
    """Raise ValueError if a stage asks for a split of the library's texts that is not that of all other stages."""
    if heldout_fraction != python_docs.HELDOUT_FRACTION:
        raise ValueError(
            f"task.heldout_fraction {heldout_fraction}: this Python's documentation has one split for all stages, "
            f"{python_docs.HELDOUT_FRACTION} of its modules held out, so that none trains on what another is examined "
            "on; leave the setting out, or give text of your own"
        )


def pieces(text: str, characters: int = 8192) -> list[str]:
    """The text cut at line ends into pieces of about this length, so that some of a single large file can be held out.

    A line longer than that is a piece by itself.
    """
    found, lines, size = [], [], 0
    for line in text.splitlines(keepends=True):
        if lines and size + len(line) > characters:
            found.append("".join(lines))
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    return [*found, "".join(lines)] if lines else found


def corpus_tokenizer(config: CorpusConfig, setup: Setup, start_from: str | None, train: list[Document]) -> Tokenizer:
    """The stage's own tokenizer if it is there already, that of `start_from`, the one configured, or a new one."""
    path = setup.folder / "tokenizer.model"
    if start_from is not None:
        if config.tokenizer is not None:
            raise ValueError(f"task.tokenizer {config.tokenizer} clashes with task.start_from {start_from!r}: give one")
        return inherited(start_from, setup)[1]
    source = path if path.exists() else config.tokenizer
    if source is not None:
        tokenizer = load_tokenizer(source)
    elif config.byte_tokens:
        tokenizer = ByteTokenizer()
    else:
        tokenizer = train_tokenizer((document.text for document in train), setup.model.vocab_size)
    if tokenizer.vocab_size != setup.model.vocab_size:
        raise ValueError(
            f"the tokenizer {source} has {tokenizer.vocab_size} tokens, model.vocab_size is {setup.model.vocab_size}"
        )
    on_first(lambda: None if path.exists() else tokenizer.save(path))
    return tokenizer


def xz_bits_per_byte(raw: bytes) -> float:
    """What `xz -9e` makes of the text, in bits per byte: the figure to beat."""
    return 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / len(raw)


def packed_rows(documents: list[Document], tokenizer: Tokenizer, config: CorpusConfig) -> tuple[LmBatch, PackingReport]:
    """Every document after a BOS token, packed into rows."""
    ids = [tokenizer.document(document.text) for document in documents]
    return pack(ids, config.row_tokens, pad_id=tokenizer.pad_id, long=config.long)
