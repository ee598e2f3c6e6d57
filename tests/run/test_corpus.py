"""The corpus of pre-training: split into pieces, some held out, compared with xz."""

import lzma

import pytest

from gptjax.run.tasks.corpus import CorpusConfig, corpus, pieces, xz_bits_per_byte
from gptjax.run.tasks.sft import SftTask


def test_pieces_end_at_line_ends_and_lose_nothing():
    text = "".join(f"line {i}\n" for i in range(100)) + "last"
    found = pieces(text, characters=80)
    assert "".join(found) == text
    assert all(piece.endswith("\n") for piece in found[:-1])
    assert max(map(len, found)) <= 80


def test_a_single_large_file_can_be_trained_on(tmp_path):
    path = tmp_path / "big.txt"
    path.write_text("".join(f"This is sentence number {i} of a long text.\n" for i in range(20_000)))
    train, heldout = corpus(CorpusConfig(corpus=path))
    assert len(train) > len(heldout) > 0
    assert not {document.text for document in train} & {document.text for document in heldout}


def test_a_corpus_without_anything_to_hold_out_is_refused(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("one line\n")
    with pytest.raises(ValueError, match="1 documents are too few to hold 10% of them out"):
        corpus(CorpusConfig(corpus=path))


def test_no_stage_splits_the_librarys_texts_in_its_own_way():
    # fine-tuning on what PPO is examined on
    with pytest.raises(ValueError, match=r"task\.heldout_fraction 0\.05: .* one split for all stages"):
        SftTask(heldout_fraction=0.05)
    with pytest.raises(ValueError, match=r"task\.heldout_fraction 0\.2"):
        CorpusConfig(heldout_fraction=0.2)


def test_xz_is_measured_on_the_compressed_file():
    raw = bytes(range(256)) * 40
    assert xz_bits_per_byte(raw) == 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / len(raw)
