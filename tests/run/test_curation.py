"""`gptjax curate`: files per split, a report, and nothing overwritten."""

import json

import pytest

from gptjax import cli

ROWS = [  # the users' splits are those of the golden case SFT4
    {"user": "u1", "prompt": "Explain gravity", "id": 7},
    {"user": "u1", "prompt": "explain  GRAVITY"},
    {"user": "u1", "prompt": [{"role": "user", "content": "mail jo@example.com"}]},
    {"user": "u4", "prompt": "What is é?"},
]


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_split_gets_its_lines_whole_and_the_report_counts_the_rest(source, tmp_path, capsys):
    cli.main(["curate", "in.jsonl", "out", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["prompts"] == 4
    assert report["kept"] == {"train": 1, "valid": 0, "test": 1}
    assert report["dropped"] == {"duplicate_prefix": 1, "pii_email": 1}
    assert lines(tmp_path / "out/train.jsonl") == [ROWS[0]]
    assert lines(tmp_path / "out/valid.jsonl") == []
    assert lines(tmp_path / "out/test.jsonl") == [ROWS[3]]
    assert json.loads((tmp_path / "out/curation.json").read_text()) == report
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_the_report_can_be_read_by_people(source, capsys):
    cli.main(["curate", "in.jsonl", "out"])
    text = "4 prompts: 1 train, 0 valid, 1 test\ndropped 1: duplicate_prefix\ndropped 1: pii_email\n"
    assert capsys.readouterr().out == text


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(["curate", *argv])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_nothing_is_overwritten(source, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/test.jsonl").write_text("precious")
    assert "out already holds test.jsonl: choose another folder" in refused(capsys, "in.jsonl", "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test.jsonl"]
    assert (tmp_path / "out/test.jsonl").read_text() == "precious"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "in.jsonl:5: bad JSON"),
        ('{"prompt": "a"}', "in.jsonl:5: no field 'user'; the object has 'prompt'"),
        ('{"user": "u"}', "in.jsonl:5: no field 'prompt'"),
        ('{"user": true, "prompt": "a"}', "in.jsonl:5: field 'user': expected a string, got bool"),
        ('{"user": "u", "prompt": [{"role": "user"}]}', "in.jsonl:5: messages[0]: no field 'content'"),
    ],
)
def test_a_bad_line_is_named_and_leaves_no_files(source, tmp_path, capsys, line, message):
    with source.open("a") as file:
        file.write(line + "\n")
    assert message in refused(capsys, "in.jsonl", "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_and_empty_files_and_wrong_rules_are_named(source, capsys):
    assert "nosuch.jsonl: no such file" in refused(capsys, "nosuch.jsonl", "out")
    source.write_text("")
    assert "in.jsonl: the file holds no lines" in refused(capsys, "in.jsonl", "out")
    assert "valid 0.9 and test 0.1" in refused(capsys, "in.jsonl", "out", "--valid", "0.9")
    assert "unknown option '--vlid'" in refused(capsys, "in.jsonl", "out", "--vlid", "0.9")
