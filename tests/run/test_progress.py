"""Progress goes to stderr, tables to where they are asked to."""

import io
import sys

import pytest

from gptjax.run.progress import Progress, duration, table


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_at_intervals_and_at_the_end(capsys):
    now = [0.0]
    with Progress("lm", 100, every=10, clock=lambda: now[0]) as progress:
        for step in range(1, 26):  # one step a second: lines at steps 1, 11, 21 and the last, 25
            now[0] = float(step)
            progress.update(step, loss=3.21987, tokens_per_second=12345.6)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "lm 1/100 loss 3.22, 12,346 tokens/s",
        "lm 11/100 loss 3.22, 12,346 tokens/s, 1 min 29 s left",
        "lm 21/100 loss 3.22, 12,346 tokens/s, 1 min 19 s left",
        "lm 25/100 loss 3.22, 12,346 tokens/s, 1 min 15 s left",
    ]


def test_time_left_after_a_resume_counts_only_new_steps(capsys):
    now = [0.0]
    with Progress("lm", 100, start=50, every=0, clock=lambda: now[0]) as progress:
        for step in (51, 52):
            now[0] += 2.0
            progress.update(step)
    assert capsys.readouterr().err == "lm 51/100\nlm 52/100 1 min 36 s left\n"


def test_a_last_line_is_not_printed_twice_or_when_nothing_happened(capsys):
    with Progress("lm", 2):
        pass
    assert capsys.readouterr().err == ""
    with Progress("lm", 1) as progress:
        progress.update(1)
    assert capsys.readouterr().err == "lm 1/1\n"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "120")
    with Progress("sft [x]", 4) as progress:
        progress.update(2, loss=1.5, tokens_per_second=10.0)
    text = stderr.getvalue()
    assert "sft [x]" in text
    assert "━" in text
    assert "2/4" in text
    assert "loss 1.5, 10 tokens/s" in text
    assert capsys.readouterr().out == ""


def test_table_shows_cells_as_they_are(capsys):
    table("Stages [1]", ["stage", "tokens", "loss"], [["lm", 1234567, 3.219876], ["[red]sft", None, 1.0]])
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line.split() for line in captured.out.splitlines() if line.strip()]
    assert lines[0] == ["Stages", "[1]"]
    assert lines[1] == ["stage", "tokens", "loss"]
    assert lines[3:] == [["lm", "1,234,567", "3.22"], ["[red]sft", "1"]]
    numbers = captured.out.splitlines()[4:6]
    assert numbers[0].rstrip()[-4:] == "3.22"


def test_table_without_a_terminal_never_cuts_long_cells(capsys):
    table("t", ["a"], [["x" * 300]])
    assert "x" * 300 in capsys.readouterr().out


def test_table_refuses_a_ragged_row():
    with pytest.raises(ValueError, match="table 't', row 1: 1 cells for 2 columns"):
        table("t", ["a", "b"], [[1, 2], [3]])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (273_600, "3 d 04 h")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
