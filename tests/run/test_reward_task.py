"""A whole run of the reward task on a few comparisons of one's own: objectives, normalisation, what was left out."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax.model.config import ModelConfig
from gptjax.model.pure import scalar_model
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.driver import run
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.reward import RewardTask
from gptjax.run.tasks.upstream import load_params
from gptjax.train.reward import RewardConfig

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MODEL = ModelConfig(vocab_size=320, layers=1, width=16, heads=2, max_length=48)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def asked(number, **rest):
    return {"messages": [{"role": "user", "content": f"After {WORDS[number % 9]}?"}], **rest}


def answers(number):
    right = {"content": WORDS[number % 9 + 1], "source": "reference"}
    return [right, {"content": WORDS[(number + 5) % 9], "ended": False}, {"content": "no no no"}]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A folder with data and a language model that was trained for one step."""
    folder = tmp_path_factory.mktemp("reward")
    rng = np.random.default_rng(0)
    lines(folder / "corpus.jsonl", [{"text": " ".join(rng.choice(WORDS, 40))} for _ in range(40)])
    ranked = [
        asked(n, responses=answers(n), ranks=[1, 3, 2], kind=["even", "odd"][n % 2], labeler=f"L{n % 3}")
        for n in range(40)
    ]
    ranked[3]["ranks"] = [1, 1, 1]
    ranked[5]["responses"][0] = {"content": "very long " * 40}
    ranked[7]["margins"] = [[0, 1, 0.5]]
    lines(folder / "ranked.jsonl", ranked)
    rated = [{"rating": 7}, {"rating": 2, "weight": 2}, {}]
    lines(
        folder / "rated.jsonl",
        [asked(n, responses=[a | b for a, b in zip(answers(n), rated, strict=True)]) for n in range(40)],
    )
    recipe = Recipe(name="tiny", stages={"lm": experiment(corpus(folder), steps=1)})
    run(recipe, folder / "run")
    return folder


def corpus(folder):
    return LmTask(corpus=folder / "corpus.jsonl", heldout_fraction=0.2, row_tokens=32)


def experiment(task, steps):
    adam = OptimizerConfig(peak_lr=3e-3, schedule="constant")
    return Experiment(task=task, model=MODEL, optimizer=adam, steps=steps, batch_size=8, mesh=MeshConfig(data=8))


def finished(workdir, name, data="ranked.jsonl", **settings):
    """(result.json of a reward stage that starts from the language model, its folder)."""
    task = RewardTask(
        start_from=str(workdir / "run" / "lm"),
        comparisons=workdir / data,
        prompt_tokens=24,
        answer_tokens=16,
        reward=RewardConfig(**settings),
        normalisation_prompts=16,
    )
    run(Recipe(name="tiny", stages={"reward": experiment(task, steps=2)}), workdir / name)
    return json.loads((workdir / name / "reward" / "result.json").read_text()), workdir / name / "reward"


def norm_of(folder: Path):
    mesh = make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh):
        _, extra = load_params(scalar_model(MODEL), folder, mesh, ("reward_gain", "reward_bias"))
        return {name: float(value) for name, value in extra.items()}


def test_rankings_are_learnt_counted_and_normalised_by_demonstrations(workdir, capsys):
    result, folder = finished(workdir, "ranking", gap_margins=(0.1, 0.2), label_smoothing=0.1, center=0.01)
    found = result["evaluation"]
    counts = {"prompts": 36, "dropped_too_long": 1, "prompts_without_pair": 1}
    counts |= {"responses": 105, "responses_cut_off": 35, "pairs": 34 * 3}
    assert found["training_data"] == counts
    assert found["heldout_data"]["pairs"] == found["pairs"] == 4 * 3
    said = capsys.readouterr().err
    assert "training: 1 of 36 prompts dropped, longer than the row" in said
    assert "training: 1 of 35 prompts have nothing but ties and teach nothing" in said
    assert sum(row["pairs"] for row in found["by_kind"].values()) == 12
    assert set(found["by_kind"]) == {"even", "odd"}
    assert set(found["by_labeler"]) == {"L0", "L1", "L2"}
    assert {gap: row["pairs"] for gap, row in found["by_rank_gap"].items()} == {"1": 8, "2": 4}
    assert found["reward_gain"] == 1.0
    norm = norm_of(folder)
    assert norm["reward_bias"] == pytest.approx(found["reward_bias"], rel=1e-6)
    for name in ("length_correlation", "score_std", "demonstration_score_mean", "nll", "brier", "ece"):
        assert np.isfinite(found[name]), name


def test_the_best_is_chosen_and_samples_of_the_reference_set_gain_and_bias(workdir):
    result, folder = finished(workdir, "choice", objective="choice", normalisation="reference")
    found, norm = result["evaluation"], norm_of(folder)
    assert found["reward_gain"] > 0
    assert found["reward_gain"] != 1.0
    assert norm == pytest.approx({name: found[name] for name in norm}, rel=1e-6)


def test_ratings_are_predicted_and_order_the_answers(workdir):
    result, _ = finished(workdir, "rating", "rated.jsonl", objective="rating")
    found = result["evaluation"]
    # a head near 0 predicts about 4: errors of 3 (weight 1) and 2 (weight 2), so about sqrt((9 + 8) / 3) = 2.38
    assert 1.5 < found["rating_rmse"] < 3.2
    assert found["pairs"] == 4
    assert "reward_bias" in found


def test_ratings_need_a_file():
    with pytest.raises(ValueError, match=r"'rating' needs a file of ratings: set task\.comparisons"):
        RewardTask(reward=RewardConfig(objective="rating"))


def test_rows_longer_than_the_context_are_refused(workdir):
    task = RewardTask(start_from=str(workdir / "run" / "lm"), comparisons=workdir / "ranked.jsonl")
    recipe = Recipe(name="tiny", stages={"reward": experiment(task, steps=1)})
    message = r"task\.prompt_tokens 64 \+ task\.answer_tokens 48 are above model\.max_length 48"
    with pytest.raises(ValueError, match=message):
        run(recipe, workdir / "long")
