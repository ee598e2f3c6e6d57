"""The tokenizer that a file holds: a sentencepiece model, or the mark of the byte vocabulary."""

import os
from pathlib import Path

from gptjax.data.byte_tokenizer import MARK, ByteTokenizer
from gptjax.data.tokenizer import Tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer stored at `path`.

    Raises:
        ValueError: the file is absent, unreadable, or no tokenizer that gptjax can use.
    """
    try:
        model = Path(path).read_bytes()
        return ByteTokenizer() if model == MARK else Tokenizer(model)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such tokenizer") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError as error:
        raise ValueError(f"{path}: the tokenizer cannot be read: {error.strerror}") from None
