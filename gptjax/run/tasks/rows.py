"""Where the rows of pre-training come from: a corpus that fits in memory, or shards that do not."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.data.load_tokenizer import load_tokenizer
from gptjax.data.loader import Share, batch_at
from gptjax.data.python_docs import HELDOUT_FRACTION
from gptjax.data.remote import open_shards, tokenizer_path
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.perplexity import heldout_loss
from gptjax.run.hosts import on_first
from gptjax.run.mesh import put
from gptjax.run.task import Setup
from gptjax.run.tasks.corpus import CorpusConfig, read_corpus, xz_bits_per_byte
from gptjax.run.tasks.upstream import inherited
from gptjax.types import LmBatch, TrainState


@dataclass(frozen=True, kw_only=True)
class RowsConfig(CorpusConfig):
    """A corpus, or rows that were made of one.

    shards: folder or URL (gs://bucket/corpus) that `gptjax tokenize` wrote, in place of `corpus`; it brings its
    tokenizer and its held-out rows.
    """

    shards: str | None = None

    def __post_init__(self) -> None:
        own = {"corpus": None, "tokenizer": None, "heldout_fraction": HELDOUT_FRACTION}
        if self.shards is not None and any(getattr(self, name) != default for name, default in own.items()):
            raise ValueError(
                f"task.shards {self.shards!r} brings text, tokenizer and held-out rows: leave "
                f"{', '.join(f'task.{name}' for name in own)} out"
            )
        super().__post_init__()


def heldout_figures(
    sums: Callable[..., Any], rows: LmBatch, setup: Setup, token_bytes_V: np.ndarray | None = None
) -> Callable[[TrainState], dict[str, float]]:
    """What gives the figures of `heldout_loss` for a state; sums(state, batch) is compiled once."""
    compiled, place = jax.jit(sums), partial(put, mesh=setup.mesh)
    return lambda state: heldout_loss(
        partial(compiled, state), rows, setup.batch_size, place, token_bytes_V, share=setup.share
    )


class Rows(NamedTuple):
    """What an objective on plain text reads.

    draw(position, batch_size, seed, share) -> rows of a batch.  figures(): what the result says of the data.
    """

    draw: Callable[[int, int, int, Share], LmBatch]
    heldout: LmBatch
    tokenizer: Tokenizer
    fingerprint: str
    figures: Callable[[], dict[str, Any]]


def corpus_rows(config: CorpusConfig, setup: Setup, start_from: str | None) -> Rows:
    """Rows of a corpus, tokenised and packed now.

    Raises:
        ValueError: as `read_corpus`.
    """
    text = read_corpus(config, setup, start_from)

    def figures() -> dict[str, Any]:
        raw = "".join(document.text for document in text.heldout).encode()
        return {"heldout_bytes": len(raw), "xz_bits_per_byte": xz_bits_per_byte(raw)} | text.figures

    def draw(position: int, batch_size: int, seed: int, share: Share) -> LmBatch:
        return batch_at(text.rows, position, batch_size, seed, share)

    return Rows(draw, text.heldout_rows, text.tokenizer, text.fingerprint, figures)


def shard_rows(folder: str, row_tokens: int, setup: Setup, start_from: str | None) -> Rows:
    """Rows of a folder that `gptjax tokenize` wrote; only the held-out ones are read now.

    Raises:
        ValueError: a file is missing or damaged, or the rows do not fit the model, the stage's settings or the stage
            that it starts from.
    """
    train, heldout = (open_shards(folder, split) for split in ("train", "heldout"))
    for name, theirs, own in (
        ("task.row_tokens", train.row_tokens, row_tokens),
        ("model.vocab_size", train.manifest["vocab_size"], setup.model.vocab_size),
    ):
        if theirs != own:
            raise ValueError(f"the rows in {folder} were made for {name} {theirs}, this stage has {own}")
    made_with = tokenizer_path(folder)
    if start_from is None:
        path = setup.folder / "tokenizer.model"
        on_first(lambda: load_tokenizer(made_with).save(path))
        tokenizer = load_tokenizer(path)
    else:
        _, tokenizer = inherited(start_from, setup)
        if tokenizer.fingerprint != train.manifest["tokenizer"]:
            raise ValueError(f"the rows in {folder} were made with another tokenizer than that of {start_from!r}")
    about = train.manifest["splits"]["train"]
    figures = {
        "heldout_bytes": train.manifest["splits"]["heldout"]["text_bytes"],
        "packing_documents": about["documents"],
        "packing_dropped_tokens": about["dropped_tokens"],
        "packing_rows": about["rows"],
        "packing_fill": about["fill"],
    }
    everything = heldout.rows(np.arange(heldout.n_rows))
    return Rows(train.batch_at, everything, tokenizer, train.manifest["fingerprint"][:32], lambda: figures)
