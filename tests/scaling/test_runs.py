"""Reading tables of runs: what is set aside is named, what cannot be meant is refused."""

import json

import numpy as np
import pytest
from synthetic import runs_of

from gptjax.scaling.runs import Columns, read_runs

GOOD = {"n_params": 1e6, "n_tokens": 2e7, "flops": 1.2e14, "loss": 3.0}


def table(path, rows, name="runs.jsonl"):
    file = path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_jsonl_and_a_csv_give_the_same_runs(tmp_path):
    rows = [GOOD | {"run": "a"}, GOOD | {"run": "b", "loss": 2.5}]
    from_jsonl = read_runs(table(tmp_path, rows))
    (tmp_path / "runs.csv").write_text("run,n_params,n_tokens,flops,loss\na,1e6,2e7,1.2e14,3\nb,1e6,2e7,1.2e14,2.5\n")
    from_csv = read_runs(tmp_path / "runs.csv")
    for name in ("n", "d", "c", "loss"):
        np.testing.assert_array_equal(getattr(from_jsonl, name), getattr(from_csv, name))
    assert from_csv.names == ["a", "b"]


def test_other_peoples_columns_are_named_and_compute_is_counted(tmp_path):
    rows = [{"size": 1e6, "data": 2e7, "final": 3.0}]
    runs = read_runs(table(tmp_path, rows), Columns(n_params="size", n_tokens="data", loss="final"))
    assert runs.c[0] == 6 * 1e6 * 2e7
    assert "1 of 1 runs without a column 'flops'" in runs.notes[0]


def test_diverged_repeated_and_dropped_runs_are_set_aside_by_name(tmp_path):
    rows = [
        GOOD | {"run": "good"},
        GOOD | {"run": "good"},
        GOOD | {"run": "nan", "loss": float("nan")},
        GOOD | {"run": "null", "loss": None},
        GOOD | {"run": "late", "status": "diverged"},
        GOOD | {"run": "unwanted", "loss": 4.0},
    ]
    runs = read_runs(table(tmp_path, rows), drop=["unwanted"])
    assert runs.names == ["good"]
    text = "\n".join(runs.notes)
    for part in ("good set aside: it repeats", "nan set aside: loss", "null set aside", "status 'diverged'"):
        assert part in text
    assert "unwanted set aside: dropped by request" in text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([GOOD | {"n_params": 0}], "line 1: n_params must be positive, got 0"),
        ([GOOD | {"n_tokens": -5}], "line 1: n_tokens must be positive, got -5"),
        ([GOOD | {"n_params": "many"}], "line 1: n_params 'many' is no finite number"),
        ([{"n_params": 1, "loss": 2}], "no column 'n_tokens': name the column with --n-tokens"),
        ([GOOD | {"run": "a"}, GOOD | {"run": "a", "loss": 2.0}], "run 'a' is there twice"),
        ([GOOD | {"tokenizer": "x"}, GOOD | {"tokenizer": "y", "loss": 2}], "runs of 2 tokenizers"),
        ([GOOD | {"loss": None}], "no run is left"),
        ([], "the table has no rows"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, rows, words):
    with pytest.raises(ValueError, match=r".") as caught:
        read_runs(table(tmp_path, rows))
    assert words in str(caught.value)


def test_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such table"):
        read_runs(tmp_path / "none.csv")
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: not JSON"):
        read_runs(tmp_path / "bad.jsonl")
    (tmp_path / "runs.txt").write_text("1")
    with pytest.raises(ValueError, match=r"ends in \.jsonl or \.csv"):
        read_runs(tmp_path / "runs.txt")


def test_achieved_budgets_are_grouped_by_their_gaps():
    # 1.00, 1.05 and 1.10 belong together, 2.0 and 2.1 too
    c = np.array([2.1, 1.0, 1.05, 2.0, 1.1])
    runs = runs_of(np.ones(5), np.ones(5), np.ones(5), c)
    assert runs.budget.tolist() == [1, 0, 0, 1, 0]


def test_the_factor_between_c_and_nd_is_measured():
    runs = runs_of([1e6, 2e6], [1e7, 1e7], [3.0, 2.9], [8e13, 1.6e14])
    assert runs.flops_per_parameter_token == pytest.approx(8.0)


def test_the_runs_of_each_budget_come_from_the_smallest():
    runs = runs_of(np.arange(1.0, 6.0), np.ones(5), np.ones(5), np.array([2.1, 1.0, 1.05, 2.0, 1.1]))
    assert [part.n.tolist() for part in runs.budgets] == [[2.0, 3.0, 5.0], [1.0, 4.0]]
    assert [part.budget.tolist() for part in runs.budgets] == [[0, 0, 0], [0, 0]]  # their own, not what was taken from
