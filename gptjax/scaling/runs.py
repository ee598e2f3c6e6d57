"""Finished runs read from a table: checked, filtered in the open, and turned into arrays."""

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

_SAME_BUDGET = 1.12  # achieved budgets within this factor of their neighbour are one nominal budget


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of a table.

    n_params, n_tokens, flops, loss: what a fit needs; without a column `flops`, C is taken as 6 N D.
    trunk: runs that share training (branches of one trunk) have equal values here (none: each run is its own).
    tokenizer: losses per token compare only within one value of it.
    """

    n_params: str = "n_params"
    n_tokens: str = "n_tokens"
    flops: str = "flops"
    loss: str = "loss"
    trunk: str = "trunk"
    tokenizer: str = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs that a fit may use, one entry each.

    n, d, c, loss: f64[M], parameters, tokens, FLOPs, final loss (nats per token).  trunk: i64[M], equal where training
    is shared.  names: what each is called in messages.  rows: the table's rows.  columns: which columns were read.
    notes: what was set aside, and why.
    """

    n: np.ndarray
    d: np.ndarray
    c: np.ndarray
    loss: np.ndarray
    trunk: np.ndarray
    names: list[str]
    rows: list[dict[str, Any]]
    columns: Columns = field(default_factory=Columns)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.n)

    def take(self, chosen: np.ndarray) -> "Runs":
        """The runs at these places, or where this mask is true."""
        index = np.flatnonzero(chosen) if np.asarray(chosen).dtype == bool else np.asarray(chosen)
        arrays = {name: getattr(self, name)[index] for name in ("n", "d", "c", "loss", "trunk")}
        lists = {name: [getattr(self, name)[i] for i in index] for name in ("names", "rows")}
        return dataclasses.replace(self, **arrays, **lists)

    @cached_property
    def flops_per_parameter_token(self) -> float:
        """k of C = k N D, the geometric mean over the runs: 6 under the usual approximation."""
        return float(np.exp(np.mean(np.log(self.c) - np.log(self.n) - np.log(self.d))))

    @cached_property
    def budget(self) -> np.ndarray:
        """i64[M], number of the budget that each run belongs to, from the smallest: C without a gap is one budget."""
        order = np.argsort(self.c)
        gaps = np.diff(np.log(self.c[order])) > math.log(_SAME_BUDGET)
        numbers = np.empty(len(self), np.int64)
        numbers[order] = np.concatenate([[0], np.cumsum(gaps)])
        return numbers

    @cached_property
    def budgets(self) -> "list[Runs]":
        """The runs of each budget, from the smallest."""
        numbers = self.budget
        return [self.take(numbers == number) for number in range(int(numbers.max()) + 1)]

    def values(self, name: str) -> np.ndarray | None:
        """f64[M] of another numeric column, None unless every run has it."""
        found = [_number(row.get(name)) for row in self.rows]
        return None if any(value is None for value in found) else np.array(found, np.float64)


def read_runs(path: Path, columns: Columns | None = None, *, drop: Sequence[str] = ()) -> Runs:
    """Runs of a .jsonl or .csv file; whatever is set aside is said in `notes`.

    Set aside: rows named in `drop`, rows whose `status` is not "done", rows without a finite loss (diverged), and exact
    repeats.

    Args:
        path: the table; a CSV has a header.
        columns: names of the columns.
        drop: names (column `run`, or "line 7") to leave out; recorded like everything that is left out.

    Raises:
        ValueError: no such file or column, a value that is zero or negative, one run with two losses, more than one
            tokenizer, or no run left.
    """
    columns = columns or Columns()
    table = _table(Path(path))
    _check_columns(path, table, columns)
    notes: list[str] = []
    kept: list[tuple[str, dict[str, Any]]] = []
    names = {name for name, _ in table}
    if unknown := [name for name in drop if name not in names]:
        raise ValueError(f"drop {', '.join(unknown)}: no such run in {path}")
    for name, row in table:
        if reason := _set_aside(name, row, columns, drop):
            notes.append(f"{name} set aside: {reason}")
        else:
            kept.append((name, row))
    kept = _distinct(path, kept, columns, notes)
    if not kept:
        raise ValueError(f"{path}: no run is left ({'; '.join(notes) or 'the table is empty'})")
    _check_tokenizers(path, [row for _, row in kept], columns)
    return _runs(kept, columns, notes)


def _table(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(name, row) of every row; the name is the column `run`, else the line."""
    if not path.is_file():
        raise ValueError(f"no such table of runs: {path}")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        rows = [(f"line {i}", dict(row)) for i, row in enumerate(csv.DictReader(text.splitlines()), 2)]
    elif path.suffix in (".jsonl", ".json"):
        rows = [(f"line {i}", _object(path, i, line)) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        raise ValueError(f"{path}: a table of runs ends in .jsonl or .csv")
    return [(str(row.get("run") or line), row) for line, row in rows]


def _object(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}:{line}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{line}: expected a JSON object, got {type(row).__name__}")
    return row


def _check_columns(path: Path, table: list[tuple[str, dict[str, Any]]], columns: Columns) -> None:
    if not table:
        raise ValueError(f"{path}: the table has no rows")
    there = list(dict.fromkeys(name for _, row in table for name in row))
    for option in ("n_params", "n_tokens", "loss"):
        if (name := getattr(columns, option)) not in there:
            flag = option.replace("_", "-")
            raise ValueError(f"{path}: no column {name!r}: name the column with --{flag}; there are {', '.join(there)}")
    if columns.flops not in there and columns.flops != Columns().flops:
        raise ValueError(f"{path}: no column {columns.flops!r}: there are {', '.join(there)}")


def _set_aside(name: str, row: Mapping[str, Any], columns: Columns, drop: Sequence[str]) -> str:
    """Why a row is not used; "" if it is. Raises ValueError if it cannot be meant."""
    if name in drop:
        return "dropped by request"
    if row.get("status") not in (None, "", "done"):
        return f"status {row['status']!r}"
    loss = _number(row.get(columns.loss))
    if loss is None:
        return f"{columns.loss} {row.get(columns.loss)!r} is no finite number (diverged?)"
    for column in (columns.n_params, columns.n_tokens, columns.loss, columns.flops):
        if column == columns.flops and row.get(column) in (None, ""):
            continue
        value = _number(row.get(column))
        if value is None:
            raise ValueError(f"{name}: {column} {row.get(column)!r} is no finite number")
        if value <= 0:
            raise ValueError(f"{name}: {column} must be positive, got {value:g}")
    return ""


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _distinct(
    path: Path, kept: list[tuple[str, dict[str, Any]]], columns: Columns, notes: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Without exact repeats; a run that has two losses is an error."""
    seen: set[str] = set()
    names: set[str] = set()
    found = []
    for name, row in kept:
        text = json.dumps(row, sort_keys=True, default=str)
        if text in seen:
            notes.append(f"{name} set aside: it repeats an earlier row")
            continue
        if "run" in row and name in names:
            raise ValueError(f"{path}: run {name!r} is there twice with different values: keep one of them")
        seen.add(text)
        names.add(name)
        found.append((name, row))
    return found


def _check_tokenizers(path: Path, rows: list[dict[str, Any]], columns: Columns) -> None:
    kinds = sorted({str(row.get(columns.tokenizer)) for row in rows})
    if len(kinds) > 1:
        raise ValueError(
            f"{path}: runs of {len(kinds)} tokenizers ({', '.join(kinds[:4])}): their losses per token do not compare; "
            "use bits per byte as loss and an empty --tokenizer, or one tokenizer's rows"
        )


def _runs(kept: list[tuple[str, dict[str, Any]]], columns: Columns, notes: list[str]) -> Runs:
    rows = [row for _, row in kept]
    n, d, loss = (
        np.array([_number(row[name]) for row in rows], np.float64)
        for name in (columns.n_params, columns.n_tokens, columns.loss)
    )
    given = [_number(row.get(columns.flops)) for row in rows]
    missing = sum(value is None for value in given)
    if missing:
        notes.append(f"{missing} of {len(rows)} runs without a column {columns.flops!r}: their C is taken as 6 N D")
    c = np.array([6 * n[i] * d[i] if value is None else value for i, value in enumerate(given)], np.float64)
    labels = [str(row.get(columns.trunk) or f"alone {i}") for i, row in enumerate(rows)]
    trunk = np.unique(np.array(labels), return_inverse=True)[1]
    names = [name for name, _ in kept]
    return Runs(n=n, d=d, c=c, loss=loss, trunk=trunk, names=names, rows=rows, columns=columns, notes=tuple(notes))
