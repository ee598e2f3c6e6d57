"""Files that are whole or absent."""

import pytest

from gptjax.files import replacing, write_atomically


def test_a_file_takes_the_place_of_the_old_one_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [child.name for child in path.parent.iterdir()] == ["a.txt"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "written in part, then half of a pair: \ud800")
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.txt"]


def test_others_may_read_it_as_any_file(tmp_path):
    write_atomically(tmp_path / "a", "text")
    (tmp_path / "b").write_text("text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
