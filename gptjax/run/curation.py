"""`gptjax curate`: a file of collected prompts -> one file per split and a report."""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptjax.data.conversations import parse_messages
from gptjax.data.curate import SPLITS, CurationConfig, fates
from gptjax.data.sources import field_of, read_jsonl
from gptjax.files import replacing, write_atomically

REPORT = "curation.json"


def curate_file(source: Path, folder: Path, config: CurationConfig, *, field: str, user_field: str) -> dict[str, Any]:
    """Write `train.jsonl`, `valid.jsonl` and `test.jsonl`, whole lines each, and `curation.json`, the report.

    The report comes last, so a folder that has it is whole.

    Args:
        source: JSON lines.
        folder: made when absent; it may hold none of these files yet.
        config: the rules.
        field: of a line, the prompt: a string, or a list of messages.
        user_field: of a line, whom the prompt comes from: a string or a whole number.

    Returns:
        The report: prompts read, kept per split, dropped per reason, and the rules.

    Raises:
        ValueError: `file:line: ...` for a bad line; a file would be overwritten; there is no prompt.
    """
    if not source.is_file():
        raise ValueError(f"{source}: no such file")
    names = [f"{split}.jsonl" for split in SPLITS]
    if taken := [name for name in (*names, REPORT) if (folder / name).exists()]:
        raise ValueError(f"{folder} already holds {', '.join(taken)}: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    counts = _write_splits(source, folder, config, field, user_field)
    report = {
        "prompts": counts.total(),
        "kept": {split: counts[split] for split in SPLITS},
        "dropped": {key.removeprefix("dropped "): n for key, n in sorted(counts.items()) if key.startswith("dropped ")},
        "rules": vars(config),
    }
    write_atomically(folder / REPORT, json.dumps(report, indent=1))
    return report


def _write_splits(source: Path, folder: Path, config: CurationConfig, field: str, user_field: str) -> Counter[str]:
    """Write the files of the splits, whole or not at all; how many prompts met which fate."""
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        files = {}
        for split in SPLITS:
            temporary = stack.enter_context(replacing(folder / f"{split}.jsonl"))
            files[split] = stack.enter_context(temporary.open("w", encoding="utf-8"))
        records, again = itertools.tee(_records(source, field, user_field))
        found = fates(((user, text) for user, text, _ in again), config)
        for (_, _, record), fate in zip(records, found, strict=True):
            counts[fate.split or f"dropped {fate.reason}"] += 1
            if fate.split:
                files[fate.split].write(json.dumps(record, ensure_ascii=False) + "\n")
        if not counts:
            raise ValueError(f"{source}: the file holds no lines")
    return counts


def _records(source: Path, field: str, user_field: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(user, text, the whole line) of each line."""
    for line, record in read_jsonl(source):
        where = f"{source}:{line}"
        yield _user(record, user_field, where), _text(record, field, where), record


def _user(record: dict[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else field_of(record, field, str, where)


def _text(record: dict[str, Any], field: str, where: str) -> str:
    if isinstance(record.get(field), list):
        return "\n".join(message["content"] for message in parse_messages(record[field], where))
    return field_of(record, field, str, where)
