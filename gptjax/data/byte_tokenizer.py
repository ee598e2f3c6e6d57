"""A vocabulary of the 256 bytes: nothing to train, and the loss over ln 2 is bits per byte."""

import hashlib
from typing import Any

import numpy as np

from gptjax.data.tokenizer import Tokenizer

MARK = b"gptjax: a token is a byte of UTF-8\n"  # content of the file that stands for this tokenizer
_N_BYTES = 256
_CONTROLS = ("pad", "bos", "end", "system", "user", "assistant", "mask")  # 255 downwards


class ByteTokenizer(Tokenizer):
    """Token ids are the bytes of the text; control tokens are bytes that occur in no valid UTF-8 (249 to 255)."""

    def __init__(self) -> None:
        self._model = MARK
        self.fingerprint = hashlib.sha256(MARK).hexdigest()
        self.vocab_size = _N_BYTES
        ids = {name: _N_BYTES - 1 - i for i, name in enumerate(_CONTROLS)}
        self.pad_id, self.bos_id, self.end_id = ids["pad"], ids["bos"], ids["end"]
        self.system_id, self.user_id, self.assistant_id = ids["system"], ids["user"], ids["assistant"]
        self._mask_id = ids["mask"]
        controls = set(ids.values())
        self._bytes = [b"" if i in controls else bytes([i]) for i in range(_N_BYTES)]
        self.token_bytes_V = np.array([len(part) for part in self._bytes], np.int32)

    @property
    def mask_id(self) -> int:
        """What stands for a hidden token in masked language modelling."""
        return self._mask_id

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`.

        Raises:
            ValueError: the text is not valid Unicode (it holds half of a surrogate pair).
        """
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(f"character {error.start} of the text is a lone surrogate: remove it") from None

    def document(self, text: str) -> np.ndarray:
        """Bytes of a whole document, after the token that begins one; an array, since bytes are many."""
        return np.concatenate([np.array([self.bos_id], np.uint8), np.frombuffer(text.encode(), np.uint8)])

    def __reduce__(self) -> Any:
        return ByteTokenizer, ()
