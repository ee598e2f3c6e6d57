"""Masked language modelling as a stage: from scratch and from a language model, and back."""

import dataclasses
import json
import random

import jax
import numpy as np
import pytest

from gptjax.data.tokenizer import train_tokenizer
from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.driver import run
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.run.report.recipe import write_report
from gptjax.run.task import Setup
from gptjax.run.tasks import mlm
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.mlm import MlmTask, filled_in
from gptjax.types import LmBatch

MODEL = ModelConfig(vocab_size=300, layers=1, width=16, heads=2, hidden=16, max_length=32)
ADAMW = OptimizerConfig(peak_lr=1e-9)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = random.Random(0)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(rng.choices(words, k=30))}) + "\n" for _ in range(60)))
    return path


def setup_of(folder, **options):
    settings = {
        "model": MODEL,
        "optimizer": ADAMW,
        "steps": 2,
        "batch_size": 8,
        "seed": 0,
        "folder": folder,
        "mesh": make_mesh(MeshConfig(data=1), jax.devices()[:1]),
        "stage_folder": lambda name: folder.parent / name,
    }
    return Setup(**(settings | options))


@pytest.mark.slow
def test_each_objective_goes_on_from_the_other(corpus, tmp_path):
    # the learning rate is next to nothing, so that what a stage starts from is what it ends with
    def experiment(task):
        return Experiment(task=task, model=MODEL, optimizer=ADAMW, mesh=MeshConfig(fsdp=4), steps=2, batch_size=8)

    shared = {"corpus": corpus, "row_tokens": 32, "heldout_fraction": 0.2, "long": "truncate"}
    tasks = {
        "lm": LmTask(**shared),
        "mlm": MlmTask(**shared, start_from="lm"),
        "back": LmTask(**shared, start_from="mlm"),
    }
    recipe = Recipe(name="both", stages={name: experiment(task) for name, task in tasks.items()})
    report = run(recipe, tmp_path / "run").read_text()
    assert "Masked language model" in report
    found = {name: json.loads((tmp_path / "run" / name / "result.json").read_text()) for name in tasks}
    assert [result["task"] for result in found.values()] == ["lm", "mlm", "lm"]
    figures = {name: result["evaluation"] for name, result in found.items()}
    assert figures["back"]["nats_per_token"] == pytest.approx(figures["lm"]["nats_per_token"], rel=1e-5)
    assert 0 < figures["mlm"]["nats_per_token"] < 10
    assert "bits_per_byte" not in figures["mlm"]  # guesses from both sides are no code for the text
    assert figures["mlm"]["packing_dropped_tokens"] == figures["lm"]["packing_dropped_tokens"] > 0
    assert len(figures["mlm"]["samples"]) > 0


def test_the_report_shows_curves_result_and_packing(tmp_path):
    folder = tmp_path / "mlm"
    folder.mkdir()
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "r", "stages": ["mlm"]}))
    rows = [{"step": step, "mlm/nats_per_token": 7 - step / 10, "mlm/accuracy": step / 20} for step in range(1, 11)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = {"nats_per_token": 6.25, "accuracy": 0.375, "packing_fill": 0.995, "packing_dropped_tokens": 1234}
    result = {"task": "mlm", "steps": 10, "seconds": 3.0, "tokens": 99, "parameters": 5}
    (folder / "result.json").write_text(json.dumps(result | {"evaluation": evaluation | {"samples": ["a [b]"]}}))
    text = write_report(tmp_path).read_text()
    for part in (
        "Masked language model",
        "guesses 37.5% of the selected held-out tokens, at 6.25 nats each",
        "Rows are 99.5% full, 1,234 tokens were left out of them",
        "37.5% of selected tokens guessed",
        "The training accuracy rose from 0.05 to 0.5",
        "a [b]",
    ):
        assert part in text
    assert text.count("<img") == 2


def test_a_batch_is_a_function_of_its_position_and_heldout_masks_of_nothing(corpus, tmp_path, monkeypatch):
    config = MlmTask(corpus=corpus, row_tokens=32, heldout_fraction=0.2)
    setup = setup_of(tmp_path / "mlm")
    with jax.set_mesh(setup.mesh):
        task, again = mlm.build(config, setup), mlm.build(config, setup)
        other = mlm.build(config, dataclasses.replace(setup, seed=1))
    seen = []
    monkeypatch.setattr("gptjax.run.tasks.rows.heldout_loss", lambda sums, rows, *_, **__: seen.append(rows) or {})
    for built in (task, other):
        built.evaluate(None)
    np.testing.assert_array_equal(seen[0].tokens_BT, seen[1].tokens_BT)
    assert (seen[0].weights_BT.sum(), seen[0].segments_BT.max()) > (10, 0)
    np.testing.assert_array_equal(task.data(3).tokens_BT, again.data(3).tokens_BT)
    # row by row over the epochs: the same targets come back, masked otherwise
    batches = [task.data(position) for position in range(40)]
    masks = {}
    for batch in batches:
        for targets_T, weights_T in zip(batch.targets_BT, batch.weights_BT, strict=True):
            masks.setdefault(targets_T.tobytes(), []).append(weights_T)
    visits = [np.stack(seen) for seen in masks.values() if len(seen) > 1]
    assert len(visits) > 10
    assert all((seen[0] != seen[1]).any() for seen in visits)


def test_a_tokenizer_without_a_mask_token_is_refused(corpus, tmp_path, monkeypatch):
    def without_mask(texts, vocab_size):
        with monkeypatch.context() as patch:
            patch.setitem(_training(), "control_symbols", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"])
            return train_tokenizer(texts, vocab_size)

    monkeypatch.setattr("gptjax.run.tasks.corpus.train_tokenizer", without_mask)
    with pytest.raises(ValueError, match=r"no control token <\|mask\|>"):
        mlm.build(MlmTask(corpus=corpus, row_tokens=32, heldout_fraction=0.2), setup_of(tmp_path / "mlm"))


def _training():
    from gptjax.data import tokenizer

    return tokenizer._TRAINING


def test_wrong_settings_are_named(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"task.mask_fraction must lie in \(0, 1\], got 0.0"):
        MlmTask(mask_fraction=0.0)
    with pytest.raises(ValueError, match=r"model.json is missing: .*nosuch is not the folder of a trained stage"):
        mlm.build(MlmTask(corpus=corpus, row_tokens=32, start_from="nosuch"), setup_of(tmp_path / "mlm"))


def test_a_filled_in_text_shows_guess_and_truth():
    tokenizer = train_tokenizer(["the fox and the dog saw the fox and the dog. " * 30], 300)
    ids = [tokenizer.bos_id, *tokenizer.encode("the fox dog")]
    assert len(ids) == 4
    fox, dog = tokenizer.encode(" fox")[0], tokenizer.encode(" dog")[0]
    place = [ids.index(fox), ids.index(dog)]
    row_T = np.array([*ids, 0], np.int32)
    weights_T = np.zeros(len(row_T), np.float32)
    weights_T[place] = 1
    guessed_T = row_T.copy()
    guessed_T[place[1]] = fox
    batch = LmBatch(
        tokens_BT=row_T[None],
        targets_BT=row_T[None],
        segments_BT=np.array([[1] * len(ids) + [0]]),
        positions_BT=np.arange(len(row_T))[None],
        weights_BT=weights_T[None],
    )
    assert filled_in(batch, guessed_T[None], tokenizer) == ["the[ fox][ fox, not  dog]"]
