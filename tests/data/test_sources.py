"""Reading documents: bad input is named by file and line, good input arrives unchanged."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.sources import read_documents, read_jsonl


def write(path, content: bytes):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_text_file_is_one_document(tmp_path, suffix):
    path = write(tmp_path / f"a.txt{suffix}", b"\xef\xbb\xbfone\r\n\n two \n")
    (document,) = read_documents(path)
    assert document.text == "one\r\n\n two \n"
    assert document.origin == str(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_are_documents_and_blank_lines_and_empty_texts_are_passed_over(tmp_path, suffix):
    path = write(tmp_path / f"a.jsonl{suffix}", b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"text": ""}\n{"text": "two"}')
    assert [(d.text, d.origin) for d in read_documents(path)] == [("one", f"{path}:1"), ("two", f"{path}:5")]


def test_another_field_can_hold_the_text(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"body": "one", "text": 3}\n')
    assert [d.text for d in read_documents(path, field="body")] == ["one"]


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "x.txt.gz", b"second")
    write(tmp_path / "a.txt", b"first")
    write(tmp_path / "c.jsonl", b'{"text": "third"}\n')
    write(tmp_path / "notes.md", b"\xff not read")
    assert [d.text for d in read_documents(tmp_path)] == ["first", "second", "third"]


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1), ascii=st.booleans())
def test_any_text_survives_json_lines(tmp_path_factory, texts, ascii):
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=ascii) for text in texts)
    path = write(tmp_path_factory.mktemp("d") / "a.jsonl", lines.encode())
    assert [d.text for d in read_documents(path)] == texts


GOOD = b'{"text": "good"}\n'


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"text": "a\xffb"}', "2: invalid UTF-8 at byte 11 of the line"),
        (b'{"text": "cut of', "2: bad JSON: Invalid control character at at character 17 of the line"),
        (b'{"text": "a"} {"text": "b"}', "2: bad JSON: Extra data"),
        (b'{"text": 3}', "2: field 'text': expected a string, got int"),
        (b'{"text": null}', "2: field 'text': expected a string, got NoneType"),
        (b'{"body": "a"}', "2: no field 'text'; the object has 'body'"),
        (b"{}", "2: no field 'text'; the object has no fields"),
        (b'["text"]', "2: expected a JSON object, got list"),
        (b'{"text": "a", "x": NaN}', "2: NaN is not JSON"),
        (b'{"text": "a", "x": [-Infinity]}', "2: -Infinity is not JSON"),
        (b'{"text": "\\ud800"}', r"2: lone surrogate '\\ud800'"),
        (b'{"text": "a", "x": {"\\uDC00": 1}}', r"2: lone surrogate '\\udc00'"),
        (b'{"x": ' + b"[" * 200_000, "2: the JSON is nested too deeply"),
        (b'{"x": ' + b"9" * 5_000 + b"}", "2: Exceeds the limit"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, message):
    path = write(tmp_path / "bad.jsonl", GOOD + bad + b"\n" + GOOD)
    with pytest.raises(ValueError, match=rf"bad\.jsonl:{message}"):
        list(read_documents(path))


def test_a_surrogate_pair_is_one_character(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "\\ud83d\\ude00"}')
    assert [d.text for d in read_documents(path)] == ["\U0001f600"]


def test_invalid_utf8_in_a_text_file_is_named_by_line(tmp_path):
    path = write(tmp_path / "bad.txt", b"one\ntwo\nab\xffc\n")
    with pytest.raises(ValueError, match=r"bad\.txt:3: invalid UTF-8 at byte 2 of the line"):
        list(read_documents(path))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-12], lambda raw: b"junk" + raw, lambda raw: raw[:-8] + bytes(8)])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(damage(gzip.compress(GOOD * 5)))
    with pytest.raises(ValueError, match=r"bad\.jsonl\.gz:\d+: damaged gzip file"):
        list(read_documents(path))


def test_nothing_to_read_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: the folder holds no file that ends in \.txt"):
        list(read_documents(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"absent\.txt: no such file or folder"):
        list(read_documents(tmp_path / "absent.txt"))
    with pytest.raises(ValueError, match=r"a\.csv: cannot read this kind of file"):
        list(read_documents(write(tmp_path / "a.csv", b"a,b")))
    with pytest.raises(ValueError, match=r"a\.jsonl: no documents"):
        list(read_documents(write(tmp_path / "a.jsonl", b"\n\n")))
    with pytest.raises(ValueError, match=r"a\.txt: no documents"):
        list(read_documents(write(tmp_path / "a.txt", b"")))


def test_read_jsonl_numbers_the_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n\n{"b": [2]}\n')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, {"b": [2]})]
