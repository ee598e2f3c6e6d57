"""A vocabulary of the 256 bytes: nothing to train, and the loss over ln 2 is bits per byte."""

import numpy as np

from gptjax.data.tokenizer import Tokenizer, utf8

MARK = b"gptjax: a token is a byte of UTF-8\n"  # content of the file that stands for this tokenizer
_N_BYTES = 256
_CONTROLS = ("pad", "bos", "end", "system", "user", "assistant", "mask")  # 255 downwards


class ByteTokenizer(Tokenizer):
    """Token ids are the bytes of the text; control tokens are bytes that occur in no valid UTF-8 (249 to 255)."""

    def __init__(self) -> None:
        self._fill(MARK, _N_BYTES)

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`.

        Raises:
            ValueError: the text is not valid Unicode (it holds half of a surrogate pair).
        """
        return list(utf8(text))

    def document(self, text: str) -> np.ndarray:
        """Bytes of a whole document, after the token that begins one; an array, since bytes are many."""
        return np.concatenate([np.array([self.bos_id], np.uint8), np.frombuffer(text.encode(), np.uint8)])

    def _control_id(self, name: str) -> int:
        return _N_BYTES - 1 - _CONTROLS.index(name)

    def _token_bytes(self, id_: int) -> bytes:
        return b"" if id_ >= _N_BYTES - len(_CONTROLS) else bytes([id_])
