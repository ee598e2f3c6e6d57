"""`gptjax tokenize`: nothing of a corpus is lost, and neither a kill nor the number of processes changes a byte."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gptjax import cli
from gptjax.data.load_tokenizer import load_tokenizer
from gptjax.data.shards import Shards
from gptjax.data.tokenizer import Tokenizer, train_tokenizer
from gptjax.files import write_atomically
from gptjax.run import tokenization
from gptjax.run.tokenization import TokenizeConfig, tokenize

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CONFIG = TokenizeConfig(row_tokens=32, heldout_fraction=0.2, part_megabytes=0.004)  # about 20 documents a part


def texts(count=120):
    rng = random.Random(0)
    return [f"{number}: " + " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 60))) for number in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": text}) + "\n" for text in texts()]
    (folder / "a.jsonl").write_text("".join(lines[:70]))
    (folder / "b.jsonl").write_text("".join(lines[70:]))
    train_tokenizer(texts(), 300).save(folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "rows"
    tokenize(corpus, folder, corpus / "tokenizer.model", CONFIG)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def documents(folder, split, tokenizer):
    """The texts in the rows: segments from their BOS on, pieces of split documents joined by their targets."""
    shards = Shards(folder, split)
    rows = shards.rows(np.arange(shards.n_rows))
    begun, continued = [], {}
    for row in range(shards.n_rows):
        for segment in range(1, rows.segments_BT[row].max() + 1):
            here = rows.segments_BT[row] == segment
            ids = rows.tokens_BT[row][here].tolist()
            follows = rows.targets_BT[row][here][-1] if rows.weights_BT[row][here][-1] else None
            if ids[0] == tokenizer.bos_id:
                begun.append((ids, follows))
            else:
                continued.setdefault(ids[0], []).append((ids, follows))
    return [tokenizer.decode(ids) for ids, follows in begun if follows is None], len(begun)


def test_every_document_is_in_the_rows_once(corpus, whole):
    tokenizer = load_tokenizer(corpus / "tokenizer.model")
    complete, begun = zip(*(documents(whole, split, tokenizer) for split in ("train", "heldout")), strict=True)
    assert sum(begun) == 120
    assert {text for texts in complete for text in texts} <= set(texts())
    # those that fit a row are there whole
    short = [text for text in texts() if len(tokenizer.encode(text)) < 32]
    assert sorted(text for texts in complete for text in texts if text in short) == sorted(short)
    manifest = json.loads((whole / "manifest.json").read_text())
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts())
    assert sum(about["tokens"] for about in manifest["splits"].values()) == tokens
    assert sum(about["documents"] for about in manifest["splits"].values()) == 120
    assert 0.1 < manifest["splits"]["heldout"]["documents"] / 120 < 0.35


def test_dropped_documents_are_counted(corpus, tmp_path):
    config = TokenizeConfig(row_tokens=32, heldout_fraction=0.2, long="drop")
    manifest = tokenize(corpus, tmp_path / "rows", corpus / "tokenizer.model", config)
    tokenizer = load_tokenizer(corpus / "tokenizer.model")
    lengths = [len(tokenizer.encode(text)) + 1 for text in texts()]
    dropped = sum(about["dropped_tokens"] for about in manifest["splits"].values())
    assert dropped == sum(length for length in lengths if length > 32)


def test_the_number_of_processes_changes_no_byte(corpus, whole, tmp_path):
    tokenize(corpus, tmp_path / "rows", corpus / "tokenizer.model", CONFIG, processes=2)
    assert contents(tmp_path / "rows") == contents(whole)


def test_what_is_missing_or_damaged_is_made_again(corpus, whole, tmp_path):
    folder = tmp_path / "rows"
    tokenize(corpus, folder, corpus / "tokenizer.model", CONFIG)
    (folder / "manifest.json").unlink()
    (folder / "train-00001.array_record").unlink()
    (folder / "part-00002.json").unlink()
    raw = bytearray((folder / "train-00003.array_record").read_bytes())
    raw[-1] ^= 1
    (folder / "train-00003.array_record").write_bytes(raw)
    untouched = (folder / "train-00000.array_record").stat().st_mtime_ns
    tokenize(corpus, folder, corpus / "tokenizer.model", CONFIG)
    assert contents(folder) == contents(whole)
    assert (folder / "train-00000.array_record").stat().st_mtime_ns == untouched


def test_killed_as_soon_as_it_wrote_something_it_goes_on(corpus, whole, tmp_path, monkeypatch):
    def dying(write):
        def wrapped(*arguments):
            write(*arguments)
            raise KeyboardInterrupt

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(tokenization, "write_atomically", dying(write_atomically))
        patch.setattr(Tokenizer, "save", dying(Tokenizer.save))
        with pytest.raises(KeyboardInterrupt):
            tokenize(corpus, tmp_path / "rows", corpus / "tokenizer.model", CONFIG)
    assert len(contents(tmp_path / "rows")) == 1
    tokenize(corpus, tmp_path / "rows", corpus / "tokenizer.model", CONFIG)
    assert contents(tmp_path / "rows") == contents(whole)


@pytest.mark.slow
def test_killed_at_20_moments_it_ends_with_the_same_bytes(corpus, whole, tmp_path):
    folder = tmp_path / "rows"
    command = [sys.executable, "-m", "gptjax", "tokenize", str(corpus), str(folder)]
    command += ["--tokenizer", str(corpus / "tokenizer.model"), "--row-tokens", "32", "--heldout-fraction", "0.2"]
    command += ["--part-megabytes", "0.004", "--processes", "1"]
    rng = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.2, 4.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert {name: raw for name, raw in contents(folder).items() if not name.endswith(".tmp")} == contents(whole)


def test_another_corpus_or_other_settings_in_the_folder_are_refused(corpus, whole, tmp_path):
    other = TokenizeConfig(row_tokens=64, heldout_fraction=0.2, part_megabytes=0.004)
    with pytest.raises(ValueError, match=r"begun with other settings \(row_tokens 32 then, 64 now\)"):
        tokenize(corpus, whole, corpus / "tokenizer.model", other)
    changed = tmp_path / "changed"
    changed.mkdir()
    lines = (corpus / "a.jsonl").read_text().splitlines(keepends=True)
    (changed / "a.jsonl").write_text("".join([*lines[:-1], json.dumps({"text": "another"}) + "\n"]))
    (changed / "b.jsonl").write_text((corpus / "b.jsonl").read_text())
    with pytest.raises(ValueError, match=r"begun with another corpus; it differs from .*jsonl:\d+ on"):
        tokenize(changed, whole, corpus / "tokenizer.model", CONFIG)


def test_a_folder_of_other_things_is_left_alone(corpus, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and was not written by `gptjax tokenize`"):
        tokenize(corpus, tmp_path, corpus / "tokenizer.model", CONFIG)


def test_a_corpus_without_heldout_documents_is_an_error(corpus, tmp_path):
    (tmp_path / "one.txt").write_text("one two three")
    with pytest.raises(ValueError, match="no document fell to heldout: give more, or change --heldout-fraction"):
        tokenize(tmp_path / "one.txt", tmp_path / "rows", corpus / "tokenizer.model", TokenizeConfig(row_tokens=8))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--row-tokens", "1", "--row-tokens must be at least 2, got 1"),
        ("--heldout-fraction", "0", "--heldout-fraction must lie between 0 and 1, got 0.0"),
        ("--part-megabytes", "0", "--part-megabytes must be positive, got 0.0"),
        ("--processes", "0", "--processes must be at least 1, got 0"),
        ("--tokenizer", "none.model", "none.model"),
    ],
)
def test_mistakes_name_the_option(corpus, tmp_path, capsys, option, value, message):
    given = {"--row-tokens": "32", "--tokenizer": str(corpus / "tokenizer.model"), "--processes": "1"} | {option: value}
    with pytest.raises(SystemExit) as exit_:
        cli.main(["tokenize", str(corpus), str(tmp_path / "rows"), *(word for pair in given.items() for word in pair)])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_counts_as_json(corpus, tmp_path, capsys):
    options = ["--tokenizer", str(corpus / "tokenizer.model"), "--row-tokens", "32", "--processes", "1", "--json"]
    cli.main(["tokenize", str(corpus), str(tmp_path / "rows"), *options, "--heldout-fraction", "0.2"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["train"]["documents"] + printed["heldout"]["documents"] == 120
