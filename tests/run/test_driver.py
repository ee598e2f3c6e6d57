"""The loop of the driver, run in this process on a model of almost no size."""

import json

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.driver import run
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.metrics import read_metrics
from gptjax.run.tasks.lm import LmTask


def test_held_out_figures_are_logged_at_each_interval_and_at_the_last_step(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    corpus.write_text("".join(json.dumps({"text": f"{number} {text}"}) + "\n" for number in range(40)))
    experiment = Experiment(
        task=LmTask(corpus=corpus, row_tokens=32, heldout_fraction=0.2),
        model=ModelConfig(vocab_size=300, layers=1, width=16, heads=2, hidden=16, max_length=32),
        optimizer=OptimizerConfig(peak_lr=1e-3),
        steps=3,
        batch_size=8,
        evaluate_every=2,
    )
    run(Recipe(name="tiny", stages={"lm": experiment}), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "lm" / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval/nats_per_token" in row or "eval/bits_per_byte" in row] == [2, 3]
