"""The library's source as a corpus: split by file, without repeats, boilerplate and tables."""

import pytest

from gptjax.data import python_source
from gptjax.data.python_source import source_documents


def test_every_file_is_on_one_side_and_there_once():
    train, heldout = source_documents("train"), source_documents("heldout")
    texts = [document.text for document in (*train, *heldout)]
    assert len(set(texts)) == len(texts)
    share = sum(len(d.text) for d in heldout) / sum(map(len, texts))
    assert 0.003 < share < 0.05
    assert {document.origin for document in train} >= {"os.py", "json/decoder.py"} - {d.origin for d in heldout}


def test_a_larger_share_holds_out_the_same_files_and_more():
    small, large = ({d.origin for d in source_documents("heldout", fraction)} for fraction in (0.01, 0.05))
    assert small < large


@pytest.mark.parametrize(
    ("raw", "usable"),
    [
        (b"import os\n" * 100, True),
        (b"import os\n", False),  # 10 bytes
        (b"x" * 400_001, False),
        (b"0x12, 0x34, " * 100, False),  # a table: one character in six is a letter
        (b"\xff" * 300, False),
    ],
)
def test_boilerplate_tables_and_other_encodings_are_left_out(raw, usable):
    assert python_source._usable(raw) == usable


def test_a_python_without_sources_is_explained(monkeypatch):
    monkeypatch.setattr(python_source, "_files", tuple)
    with pytest.raises(ValueError, match="no source files for the train split"):
        source_documents("train")
