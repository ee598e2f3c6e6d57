"""Text to token ids and back, by a sentencepiece BPE vocabulary with byte fallback."""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from gptjax.files import replacing

ROLES = ("system", "user", "assistant")
_SPACE_MARK = "\u2581"  # sentencepiece's stand-in for a space inside pieces; real ones in text go through byte pieces
_UNTRAINABLE = re.compile("[\0\t\u2581\u2585]")  # sentencepiece skips sentences with its reserved characters
_PROBE = " a  \u2581<|end|>\n\0\té\u4e2d\U0001f600 "
_N_BYTES = 256


class Tokenizer:
    """A vocabulary: every valid str survives `decode(encode(text))`, and no text can produce a control token.

    Attributes:
        pad_id, bos_id: int, padding and start of document.
        system_id, user_id, assistant_id, end_id: int, the role headers and the end of a turn.
        mask_id: int, what stands for a hidden token; only asking for it needs a model that has one.
        vocab_size: int.
        token_bytes_V: i32[V], UTF-8 bytes that each token stands for; 0 for control tokens.
        fingerprint: sha256 of the model, in hex.

    Raises:
        ValueError: `model` is no sentencepiece model, or one that lacks the control tokens or changes the text.
    """

    def __init__(self, model: bytes) -> None:
        self._processor = _processor(model)
        self._fill(model, self._processor.vocab_size())
        self._space_mark_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise ValueError("the model changes text: it needs byte_fallback, identity normalization, no dummy prefix")

    def _fill(self, model: bytes, vocab_size: int) -> None:
        """Set the attributes, of what the file holds and `_control_id` and `_token_bytes` say."""
        self._model, self.vocab_size = model, vocab_size
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.pad_id, self.bos_id, self.end_id = (self._control_id(name) for name in ("pad", "bos", "end"))
        self.system_id, self.user_id, self.assistant_id = (self._control_id(name) for name in ROLES)
        self._bytes = [self._token_bytes(id_) for id_ in range(vocab_size)]
        self.token_bytes_V = np.array([len(part) for part in self._bytes], np.int32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to `path`, whole or not at all."""
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(self._model)

    @property
    def mask_id(self) -> int:
        """What stands for a hidden token in masked language modelling.

        Raises:
            ValueError: the tokenizer was trained before there was such a token.
        """
        return self._control_id("mask")

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; never a control id, whatever the text says.

        Raises:
            ValueError: the text is not valid Unicode (it holds half of a surrogate pair).
        """
        utf8(text)
        first, *rest = text.split(_SPACE_MARK)
        ids = list(self._processor.encode(first))
        for part in rest:
            ids += self._space_mark_ids
            ids += self._processor.encode(part)
        return ids

    def document(self, text: str) -> Any:
        """Token ids of a whole document, a sequence, after the token that begins one."""
        return [self.bos_id, *self.encode(text)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 bytes that `ids` stand for, control ids skipped; a prefix may end within a character.

        Raises:
            ValueError: an id lies outside the vocabulary.
        """
        parts = []
        for id_ in ids:
            if not 0 <= id_ < self.vocab_size:
                raise ValueError(f"token id {id_} is outside the vocabulary of {self.vocab_size}")
            parts.append(self._bytes[id_])
        return b"".join(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """Text that `ids` stand for, control ids skipped; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def _control_id(self, name: str) -> int:
        id_ = self._processor.piece_to_id(f"<|{name}|>")
        if not self._processor.is_control(id_):
            raise ValueError(f"the tokenizer has no control token <|{name}|>; train one with train_tokenizer")
        return id_

    def _token_bytes(self, id_: int) -> bytes:
        if self._processor.is_control(id_) or self._processor.is_unknown(id_):
            return b""
        piece = self._processor.id_to_piece(id_)
        return bytes([int(piece[1:-1], 16)]) if self._processor.is_byte(id_) else _surface(piece)


def utf8(text: str) -> bytes:
    """The bytes of `text`.

    Raises:
        ValueError: the text is not valid Unicode (it holds half of a surrogate pair).
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} of the text is a lone surrogate: remove it") from None


def _surface(piece: str) -> bytes:
    return piece.replace(_SPACE_MARK, " ").encode()


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        if model and processor.vocab_size():
            return processor
    except RuntimeError:
        pass
    raise ValueError(f"not a sentencepiece model ({len(model)} bytes)")


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, sample_bytes: int = 4_000_000) -> Tokenizer:
    """Train a BPE vocabulary, the same one each time for the same texts.

    Args:
        texts: documents; if they hold more than `sample_bytes`, every k-th one is used.
        vocab_size: tokens, control tokens (8 with unk) and the 256 bytes included.
        sample_bytes: most text to train on (bytes).

    Returns:
        The tokenizer.

    Raises:
        ValueError: the texts are empty, or too few for so large a vocabulary.

    Source: Sennrich et al. 2016, arXiv:1508.07909 (BPE); Kudo and Richardson 2018, arXiv:1808.06226 (sentencepiece).
    """
    if vocab_size <= _N_BYTES + 8:
        raise ValueError(f"vocab_size {vocab_size} is too small: 256 bytes and 8 special tokens need more than 264")
    sample = _thinned(texts, sample_bytes)
    if not sample:
        raise ValueError("no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample), model_writer=model, vocab_size=vocab_size, **_TRAINING
        )
    except RuntimeError as error:
        raise ValueError(_training_error(str(error), vocab_size, sample)) from None
    return Tokenizer(model.getvalue())


# BPE against unigram, 4,096 tokens, 2 MB of documentation: a held-out trigram model reaches 1.757 bits/byte with BPE
# and 1.769 with unigram; BPE trains in 0.4 s instead of 8 s; splitting digits costs BPE 0.008 bits/byte.
_TRAINING = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.9995,
    "required_chars": _SPACE_MARK,  # else a corpus without spaces would send them through the bytes of the mark
    "max_sentence_length": 1 << 30,
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": 2,
    "eos_id": -1,
    "pad_piece": "<|pad|>",
    "bos_piece": "<|bos|>",
    "control_symbols": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|mask|>"],
    "num_threads": 2,  # recorded in the model, hence part of its fingerprint
    "minloglevel": 4,
}


def _thinned(texts: Iterable[str], limit: int) -> list[str]:
    """Every k-th text, k the smallest power of two that keeps at most `limit` bytes; one pass."""
    kept: list[tuple[int, str]] = []
    size, stride = 0, 1
    for index, text in enumerate(texts):
        if index % stride:
            continue
        kept.append((index, text))
        size += len(text.encode(errors="replace"))
        while size > limit and len(kept) > 1:
            stride *= 2
            kept = [entry for entry in kept if entry[0] % stride == 0]
            size = sum(len(entry[1].encode(errors="replace")) for entry in kept)
    return [part for _, text in kept for part in _UNTRAINABLE.split(text) if part]


def _training_error(message: str, vocab_size: int, sample: Sequence[str]) -> str:
    size = sum(map(len, sample))
    if found := re.search(r"too high .*<= (\d+)", message):
        return (
            f"vocab_size {vocab_size} is larger than the {found[1]} tokens that {size} characters of text support: "
            f"choose at most {found[1]} or give more text"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"vocab_size {vocab_size} is too small: special tokens, bytes and characters need {found[1]}"
    return f"sentencepiece could not train on {size} characters: {message}"
