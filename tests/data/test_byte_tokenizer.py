"""Bytes as tokens: lossless, 256 of them, and no text can produce a control token."""

import numpy as np
import pytest

from gptjax.data.byte_tokenizer import ByteTokenizer
from gptjax.data.load_tokenizer import load_tokenizer

TOKENIZER = ByteTokenizer()
CONTROLS = [
    TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.end_id, TOKENIZER.system_id, TOKENIZER.user_id,
    TOKENIZER.assistant_id, TOKENIZER.mask_id,
]  # fmt: skip


@pytest.mark.parametrize("text", ["", "def f():\n\treturn 0\n", "\0é中\U0001f600\U0010ffff", "<|end|>"])
def test_text_survives_and_never_holds_a_control_token(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not set(ids) & set(CONTROLS)
    np.testing.assert_array_equal(TOKENIZER.document(text), [TOKENIZER.bos_id, *ids])


def test_control_tokens_are_bytes_that_utf8_never_uses():
    assert sorted(CONTROLS) == list(range(249, 256))
    for control in CONTROLS:
        with pytest.raises(UnicodeDecodeError):
            bytes([control]).decode()
    assert TOKENIZER.vocab_size == 256
    assert TOKENIZER.token_bytes_V.tolist() == [1] * 249 + [0] * 7


def test_half_of_a_surrogate_pair_is_refused():
    with pytest.raises(ValueError, match="character 1 of the text is a lone surrogate"):
        TOKENIZER.encode("a\ud800")


def test_a_saved_byte_tokenizer_is_loaded_as_one(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.model")
    loaded = load_tokenizer(tmp_path / "tokenizer.model")
    assert isinstance(loaded, ByteTokenizer)
    assert loaded.fingerprint == TOKENIZER.fingerprint
