"""Pre-training: corpus -> tokenizer -> packed rows -> a language model."""

import hashlib
import lzma
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax.data import python_docs
from gptjax.data.loader import batch_at
from gptjax.data.packing import pack
from gptjax.data.sources import Document, read_documents
from gptjax.data.tokenizer import Tokenizer, train_tokenizer
from gptjax.eval.perplexity import heldout_loss
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import language_model
from gptjax.optim.optimizer import optimizer
from gptjax.run.mesh import put
from gptjax.run.progress import status
from gptjax.run.task import Setup, Task
from gptjax.run.tasks.upstream import sampler
from gptjax.train.lm import lm_step, lm_sums
from gptjax.train.update import initial_state
from gptjax.types import LmBatch, Model, Params, PromptBatch


@dataclass(frozen=True, kw_only=True)
class LmTask:
    """Next-token prediction on a corpus.

    corpus: a .txt, .jsonl or .gz file or a folder of them; None: the documentation of the Python that runs this.
    field: of a JSON line, the text.  include_source: with the default corpus, library source code too.
    heldout_fraction: of the corpus (of the modules, with the default corpus), never trained on.
    tokenizer: a sentencepiece model; None: one is trained on the corpus with model.vocab_size tokens.
    row_tokens: T.  z_loss: coefficient.  loss_chunks: pieces in which logits are computed.
    """

    corpus: Path | None = None
    field: str = "text"
    include_source: bool = True
    heldout_fraction: float = 0.1
    tokenizer: Path | None = None
    row_tokens: int = 256
    z_loss: float = 0.0
    loss_chunks: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.heldout_fraction < 1.0:
            raise ValueError(f"task.heldout_fraction must lie between 0 and 1, got {self.heldout_fraction}")
        if self.row_tokens < 2:
            raise ValueError(f"task.row_tokens must be at least 2, got {self.row_tokens}")


def build(config: LmTask, setup: Setup) -> Task:
    """The task, with its corpus read, its tokenizer trained and its rows packed."""
    if config.row_tokens > setup.model.max_length:
        raise ValueError(f"task.row_tokens {config.row_tokens} is above model.max_length {setup.model.max_length}")
    with status("reading the corpus"):
        train, heldout = corpus(config)
    with status("training the tokenizer"):
        tokenizer = corpus_tokenizer(config, setup, train)
    with status("packing rows"):
        rows, heldout_rows = (packed_rows(documents, tokenizer, config.row_tokens) for documents in (train, heldout))
    model = language_model(setup.model)
    tx = optimizer(setup.optimizer, setup.steps, model.roles, model.letters)
    place = partial(put, mesh=setup.mesh)
    sums = jax.jit(partial(lm_sums, model=model, loss_chunks=config.loss_chunks))
    step = partial(
        lm_step, model=model, optimizer=tx, z_loss=config.z_loss, loss_chunks=config.loss_chunks,
        dropout=setup.model.dropout > 0,
    )  # fmt: skip

    def evaluate(state):
        figures = heldout_loss(partial(sums, state), heldout_rows, setup.batch_size, place, tokenizer.token_bytes_V)
        return {f"eval/{name}": value for name, value in figures.items()}

    def finish(state):
        raw = "".join(document.text for document in heldout).encode()
        report: dict[str, Any] = {name.removeprefix("eval/"): value for name, value in evaluate(state).items()}
        report |= {"heldout_bytes": len(raw), "xz_bits_per_byte": xz_bits_per_byte(raw)}
        report["samples"] = samples(model, state.params, tokenizer, setup)
        return state, report

    return Task(
        init=lambda key: initial_state(model.init(key), tx, jax.random.fold_in(key, 1)),
        data=lambda position: batch_at(rows, position, setup.batch_size, setup.seed),
        step=step,
        evaluate=evaluate,
        finish=finish,
        tokens="lm/tokens",
        loss="lm/nats_per_token",
        flops_per_token=setup.model.train_flops_per_token(config.row_tokens),
        data_fingerprint=f"{python_docs.fingerprint([*train, *heldout])[:16]}-{tokenizer.fingerprint[:16]}",
    )


def corpus(config: LmTask) -> tuple[list[Document], list[Document]]:
    """(training documents, held-out documents)."""
    if config.corpus is None:
        train = python_docs.documents("train", include_source=config.include_source, fraction=config.heldout_fraction)
        return train, python_docs.documents("heldout", fraction=config.heldout_fraction)
    documents = [
        Document(text=piece, origin=document.origin)
        for document in read_documents(config.corpus, field=config.field)
        for piece in pieces(document.text)
    ]
    heldout = [document for document in documents if _fraction(document.text) < config.heldout_fraction]
    train = [document for document in documents if _fraction(document.text) >= config.heldout_fraction]
    if not heldout or not train:
        raise ValueError(
            f"{config.corpus}: {len(documents)} documents are too few to hold {config.heldout_fraction:.0%} of them "
            "out: split the text into more documents, or change task.heldout_fraction"
        )
    return train, heldout


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


def corpus_tokenizer(config: LmTask, setup: Setup, train: list[Document]) -> Tokenizer:
    """The stage's own tokenizer if it is there already, the one configured, or a new one trained on the corpus."""
    path = setup.folder / "tokenizer.model"
    source = path if path.exists() else config.tokenizer
    if source is not None:
        tokenizer = Tokenizer.load(source)
    else:
        tokenizer = train_tokenizer((document.text for document in train), setup.model.vocab_size)
    if tokenizer.vocab_size != setup.model.vocab_size:
        raise ValueError(
            f"the tokenizer {source} has {tokenizer.vocab_size} tokens, model.vocab_size is {setup.model.vocab_size}"
        )
    if not path.exists():
        tokenizer.save(path)
    return tokenizer


def xz_bits_per_byte(raw: bytes) -> float:
    """What `xz -9e` makes of the text, in bits per byte: the figure to beat."""
    return 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / len(raw)


def samples(model: Model, params: Params, tokenizer: Tokenizer, setup: Setup, count: int = 4) -> list[str]:
    """A few texts that the model writes from nothing."""
    rows = setup.batch_size
    prompts = PromptBatch(tokens_BP=np.full((rows, 1), tokenizer.bos_id, np.int32), lengths_B=np.ones(rows, np.int32))
    sampling = SamplingConfig(max_new_tokens=min(96, setup.model.max_length - 1), temperature=0.8)
    found = sampler(model, setup, tokenizer, sampling)(params, prompts, jax.random.key(setup.seed), rows)
    return [answer.text for answer in found[:count]]


def packed_rows(documents: list[Document], tokenizer: Tokenizer, row_tokens: int) -> LmBatch:
    """Every document after a BOS token, packed into rows."""
    ids = [[tokenizer.bos_id, *tokenizer.encode(document.text)] for document in documents]
    return pack(ids, row_tokens, pad_id=tokenizer.pad_id)[0]


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
