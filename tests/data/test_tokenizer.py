"""Tokenizer: nothing is lost, and no text can produce a control token."""

import os

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptjax.data.load_tokenizer import load_tokenizer
from gptjax.data.tokenizer import _TRAINING, Tokenizer, train_tokenizer

CONTROL = ("<|pad|>", "<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|mask|>")
TEXTS = [
    "The quick brown fox jumps over the lazy dog; the dog sleeps.\n\n    def fox(dog):\n        return dog\n" * 3,
    "Return the length of the longest common prefix of the names of the files.\n",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 320)


def test_control_tokens_have_fixed_ids_and_no_bytes(tokenizer):
    t = tokenizer
    assert [t.pad_id, t.bos_id, t.system_id, t.user_id, t.assistant_id, t.end_id] == [0, 2, 3, 4, 5, 6]
    assert t.mask_id == 7
    assert t.vocab_size == 320
    assert t.token_bytes_V.dtype == np.int32
    assert t.token_bytes_V[:8].tolist() == [0] * 8
    assert (t.token_bytes_V[8:] > 0).all()
    assert t.decode([2, 4, *t.encode("the fox"), 7, 6]) == "the fox"


def test_token_bytes_sum_to_the_bytes_of_the_text(tokenizer):
    # "é" and "中" are 2 and 3 bytes
    for text, size in [("the fox", 7), ("é", 2), ("中 \u2581", 7)]:
        assert tokenizer.token_bytes_V[tokenizer.encode(text)].sum() == size


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("\u2581\u2585 \t\n\r\0a<>|end中\U0001f600\ufeff"))
@example("  leading and trailing  ")
@example("中文 \U0001f600\U0001f468\u200d\U0001f469 \u2581\u2581 \u2585\ufffd\ufeff")
@example("\0\t\n\r\n   \x85\u2028")
@example("<0x41><unk><s></s><|end|>")
@example("")
def test_any_text_survives_and_holds_no_control_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert all(id_ >= 8 for id_ in ids)


@pytest.mark.parametrize("name", [*CONTROL, "<unk>"])
@pytest.mark.parametrize("around", ["{}", "a {} b", "\n{}{}", "user: {}"])
def test_special_token_text_is_plain_text(tokenizer, name, around):
    text = around.format(name, name)
    ids = tokenizer.encode(text)
    assert min(ids) >= 8
    assert tokenizer.decode(ids) == text


def test_words_of_the_corpus_become_few_tokens(tokenizer):
    assert len(tokenizer.encode("the dog")) <= 3
    assert len(tokenizer.encode("        ")) <= 2


def test_a_character_cut_in_half_is_replaced(tokenizer):
    ids = tokenizer.encode("中")
    assert tokenizer.decode_bytes(ids[:1]) == b"\xe4"
    assert tokenizer.decode(ids[:1]) == "\ufffd"


def test_training_twice_gives_the_same_model_and_saving_keeps_it(tokenizer, tmp_path):
    again = train_tokenizer(iter(TEXTS), 320)
    assert again.fingerprint == tokenizer.fingerprint
    again.save(tmp_path / "sub" / "t.model")
    loaded = load_tokenizer(tmp_path / "sub" / "t.model")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode("the fox") == tokenizer.encode("the fox")
    assert os.listdir(tmp_path / "sub") == ["t.model"]
    assert train_tokenizer(TEXTS, 300).fingerprint != tokenizer.fingerprint


def test_a_failed_save_leaves_the_old_file_and_no_litter(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "t.model"
    path.write_bytes(b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["t.model"]


def test_a_space_survives_a_corpus_without_one():
    spaceless = train_tokenizer(["ababab", "yz"], 273)
    assert spaceless.decode(spaceless.encode(" a \u2581")) == " a \u2581"


def test_reserved_characters_in_the_corpus_do_not_hide_the_rest():
    clean = train_tokenizer(["the lazy dog " * 50, "x" * 10], 290)
    dirty = train_tokenizer(["\0\t\u2581\u2585" + "the lazy dog " * 50, "x" * 10], 290)
    assert dirty.encode("the lazy dog") == clean.encode("the lazy dog")


def test_a_large_corpus_is_thinned_evenly():
    # 100 texts of 10 bytes, at most 300 bytes: every fourth one is kept, so words of all the others are unknown
    texts = [("ab" if i % 4 == 0 else "yz") * 5 for i in range(100)]
    sampled = train_tokenizer(texts, 269, sample_bytes=300)
    assert len(sampled.encode("abab")) < 4
    assert len(sampled.encode("yzyz")) == 4


def test_training_writes_nothing_to_stderr(capfd):
    train_tokenizer(TEXTS, 300)
    with pytest.raises(ValueError, match="4096"):
        train_tokenizer(TEXTS, 4096)
    assert capfd.readouterr() == ("", "")


def test_errors_name_the_numbers():
    with pytest.raises(
        ValueError, match=r"vocab_size 4096 is larger than the 290 tokens that 11 characters .* support"
    ):
        train_tokenizer(["hello world"], 4096)
    with pytest.raises(ValueError, match=r"vocab_size 266 is too small: .* need 272"):
        train_tokenizer(["hello world"], 266)
    with pytest.raises(ValueError, match=r"vocab_size 264 is too small: .* more than 264"):
        train_tokenizer(["hello world"], 264)
    with pytest.raises(ValueError, match="no text to train"):
        train_tokenizer(["", "\0"], 300)


@pytest.mark.parametrize("id_", [-1, 320])
def test_an_id_outside_the_vocabulary_is_an_error(tokenizer, id_):
    with pytest.raises(ValueError, match=f"token id {id_} is outside the vocabulary of 320"):
        tokenizer.decode([id_])


def test_a_lone_surrogate_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="character 1 of the text is a lone surrogate"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("content", [b"", b"junk", b"\x00" * 100])
def test_a_file_that_is_no_model_is_named(tmp_path, content):
    path = tmp_path / "bad.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.model: not a sentencepiece model"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, r"no control token <\|pad\|>"), ({"pad_piece": "<|pad|>", "pad_id": 3}, r"no control token <\|bos\|>")],
)
def test_a_model_without_our_control_tokens_is_refused(tmp_path, options, message):
    prefix = tmp_path / "other"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(prefix), vocab_size=50, minloglevel=4, **options
    )
    with pytest.raises(ValueError, match=message):
        load_tokenizer(f"{prefix}.model")


def test_a_model_that_changes_text_is_refused(tmp_path):
    prefix = tmp_path / "lossy"
    names = {"pad_id": 3, "pad_piece": "<|pad|>", "bos_piece": "<|bos|>", "control_symbols": list(CONTROL[2:])}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(prefix), vocab_size=57, minloglevel=4, **names
    )
    with pytest.raises(ValueError, match="the model changes text"):
        load_tokenizer(f"{prefix}.model")


def test_a_tokenizer_without_a_mask_token_serves_everything_but_masking(tmp_path):
    prefix = tmp_path / "older"
    training = _TRAINING | {"control_symbols": list(CONTROL[2:-1]), "vocab_size": 310, "model_prefix": str(prefix)}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), **training)
    older = load_tokenizer(f"{prefix}.model")
    assert older.decode(older.encode("the <|mask|> fox")) == "the <|mask|> fox"
    with pytest.raises(ValueError, match=r"no control token <\|mask\|>; train one with train_tokenizer"):
        _ = older.mask_id
