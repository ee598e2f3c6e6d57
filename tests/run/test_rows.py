"""Rows of pre-training from shards, as a task gets them."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from gptjax.data.load_tokenizer import load_tokenizer
from gptjax.data.loader import Share
from gptjax.data.shards import Shards
from gptjax.data.tokenizer import train_tokenizer
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.task import Setup
from gptjax.run.tasks.lm import LmTask, lm_rows
from gptjax.run.tokenization import TokenizeConfig, tokenize


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of shards, `rows`, and the tokenizer that made them."""
    folder = tmp_path_factory.mktemp("made")
    rng = random.Random(0)
    texts = [" ".join(rng.choice(["one", "two", "three", "four"]) for _ in range(30)) for _ in range(60)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer(texts, 290).save(folder / "tokenizer.model")
    config = TokenizeConfig(row_tokens=32, heldout_fraction=0.3, part_megabytes=0.002)
    tokenize(folder / "texts.jsonl", folder / "rows", folder / "tokenizer.model", config)
    return folder


def setup(mesh, folder, **model) -> Setup:
    sizes = {"vocab_size": 290, "layers": 1, "width": 8, "heads": 2, "max_length": 32} | model
    return Setup(
        model=ModelConfig(**sizes),
        optimizer=OptimizerConfig(peak_lr=1e-3),
        steps=1,
        batch_size=4,
        seed=0,
        folder=folder / "lm",
        mesh=mesh,
        stage_folder=lambda name: folder / name,
    )


def test_a_stage_draws_from_the_shards_with_their_tokenizer(made, one_device, tmp_path):
    stage = setup(one_device, tmp_path)
    rows = lm_rows(LmTask(shards=str(made / "rows"), row_tokens=32), stage, None)
    shards = Shards(made / "rows", "train")
    whole = shards.batch_at(5, 4, 7)
    half = rows.draw(5, 4, 7, Share((1,), 2))
    assert half.tokens_BT.tolist() == whole.tokens_BT[2:].tolist()
    assert load_tokenizer(stage.folder / "tokenizer.model").fingerprint == rows.tokenizer.fingerprint
    heldout = Shards(made / "rows", "heldout")
    assert rows.heldout.tokens_BT.tolist() == heldout.rows(np.arange(heldout.n_rows)).tokens_BT.tolist()
    assert rows.figures()["packing_rows"] == shards.n_rows
    # bytes of the text that the held-out rows stand for: no document of these is longer than a row's tokens say
    assert rows.figures()["heldout_bytes"] == sum(
        len(rows.tokenizer.decode_bytes(tokens.tolist())) for tokens in rows.heldout.tokens_BT
    )
    assert rows.fingerprint == shards.manifest["fingerprint"][:32]


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ({"row_tokens": 16}, {}, "were made for task.row_tokens 32, this stage has 16"),
        ({"row_tokens": 32}, {"vocab_size": 300}, "were made for model.vocab_size 290, this stage has 300"),
    ],
)
def test_rows_that_do_not_fit_the_stage_are_an_error(made, one_device, tmp_path, task, model, message):
    with pytest.raises(ValueError, match=message):
        lm_rows(LmTask(shards=str(made / "rows"), **task), setup(one_device, tmp_path, **model), None)


def test_an_altered_tokenizer_is_an_error(made, one_device, tmp_path):
    (tmp_path / "rows").mkdir()
    for file in (made / "rows").iterdir():
        (tmp_path / "rows" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "rows" / "tokenizer.model").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"tokenizer\.model is not the one that the rows were made with"):
        lm_rows(LmTask(shards=str(tmp_path / "rows"), row_tokens=32), setup(one_device, tmp_path), None)


@pytest.mark.parametrize("other", [{"corpus": Path("texts")}, {"tokenizer": Path("tokenizer.model")}])
def test_shards_bring_text_and_tokenizer(other):
    with pytest.raises(ValueError, match=r"task\.shards 'rows' brings text, tokenizer and held-out rows"):
        LmTask(shards="rows", **other)
