"""The reward task on a few comparisons of one's own: objectives, normalisation, what was left out and said so."""

import json
from dataclasses import asdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.data.tokenizer import train_tokenizer
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.run.task import Setup
from gptjax.run.tasks.reward import RewardTask, build
from gptjax.train.normalise import normalised
from gptjax.train.reward import RewardConfig, candidate_scores
from gptjax.train.update import initial_state

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
def folder(tmp_path_factory):
    """Comparisons, ratings, and a language model with its tokenizer as a stage leaves them behind."""
    folder = tmp_path_factory.mktemp("reward")
    rng = np.random.default_rng(0)
    train_tokenizer([" ".join(rng.choice(WORDS, 40)) for _ in range(40)], 320).save(folder / "lm" / "tokenizer.model")
    (folder / "lm" / "model.json").write_text(json.dumps(asdict(MODEL)))
    with jax.set_mesh(one_device_mesh()):
        state = initial_state(drawn(language_model(MODEL).init), optax.sgd(1.0), jax.random.key(1))
        checkpoints = Checkpoints(folder / "lm" / "checkpoints", keep=1)
        checkpoints.save(jax.device_put(state, NamedSharding(jax.sharding.get_mesh(), PartitionSpec())), 1, {})
        checkpoints.close()
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
    return folder


def drawn(init):
    """What `init` would return, filled with NumPy's numbers: nothing to compile."""
    rng = np.random.default_rng(1)
    everywhere = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())

    def fill(struct):
        values = rng.normal(scale=0.2, size=struct.shape) if struct.dtype == np.float32 else np.zeros(struct.shape)
        return jax.device_put(values.astype(struct.dtype), everywhere)

    return jax.tree.map(fill, jax.eval_shape(init, jax.random.key(0)))


def one_device_mesh():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


def task(folder, data="ranked.jsonl", prompt_tokens=24, **settings):
    config = RewardTask(
        start_from="lm",
        comparisons=folder / data,
        prompt_tokens=prompt_tokens,
        answer_tokens=16,
        reward=RewardConfig(**settings),
        normalisation_prompts=16,
    )
    setup = Setup(
        model=MODEL,
        optimizer=OptimizerConfig(peak_lr=1e-3, schedule="constant"),
        steps=2,
        batch_size=8,
        seed=0,
        folder=folder / "reward",
        mesh=jax.sharding.get_mesh(),
        stage_folder=lambda name: folder / name,
    )
    return build(config, setup)


def finished(task, mesh, updates=1):
    """(figures, state, metrics) after some updates."""
    state, metrics = task.start(jax.random.key(0)), {}
    step = jax.jit(task.step)
    for number in range(updates):
        state, metrics = step(state, put(task.data(number), mesh))
    state, figures = task.finish(state)
    return figures, state, metrics


def test_rankings_are_learnt_counted_and_normalised_by_demonstrations(folder, one_device, capsys):
    options = {"gap_margins": (0.1, 0.2), "label_smoothing": 0.1, "center": 0.01}
    found, state, metrics = finished(task(folder, **options), one_device)
    counts = {"prompts": 36, "dropped_too_long": 1, "prompts_without_pair": 1}
    counts |= {"responses": 105, "responses_cut_off": 35, "pairs": 34 * 3}
    assert found["training_data"] == counts
    assert found["heldout_data"]["pairs"] == found["pairs"] == 4 * 3
    said = capsys.readouterr().err
    assert "training: 1 of 36 prompts dropped, longer than the row" in said
    assert "training: 1 of 35 prompts have nothing but ties and teach nothing" in said
    assert {label: row["pairs"] for label, row in found["by_kind"].items()} == {"even": 6, "odd": 6}
    assert {label: row["pairs"] for label, row in found["by_labeler"].items()} == {"L0": 6, "L1": 3, "L2": 3}
    assert {gap: row["pairs"] for gap, row in found["by_rank_gap"].items()} == {"1": 8, "2": 4}
    assert found["reward_gain"] == float(state.extra["reward_gain"]) == 1.0
    assert found["reward_bias"] == pytest.approx(float(state.extra["reward_bias"]))
    assert float(metrics["reward/loss"]) != pytest.approx(float(metrics["reward/loss_nats"]), abs=1e-3)
    figures = ("length_correlation", "score_std", "demonstration_score_mean", "sample_score_mean", "brier", "ece")
    assert all(np.isfinite(found[name]) for name in figures)


def test_candidates_share_rows_whose_number_is_that_of_every_batch(folder, one_device):
    ready = task(folder)
    batches = [ready.data(position) for position in range(5)]
    assert {batch.tokens_BT.shape for batch in batches} == {batches[0].tokens_BT.shape}
    rows, columns = batches[0].tokens_BT.shape
    assert columns == 24 + 16
    for batch in batches:
        real = batch.judged.lengths_BC.sum()
        assert rows < 8 * 3
        assert np.count_nonzero(batch.segments_BT) == real > rows * columns / 2


def test_rows_too_short_for_a_candidate_are_refused():
    message = r"task\.row_tokens 100 is below task\.prompt_tokens 64 \+ task\.answer_tokens 48"
    with pytest.raises(ValueError, match=message):
        RewardTask(row_tokens=100)


def test_the_demonstrations_have_mean_zero_after_normalisation(folder, one_device):
    ready = task(folder)
    state = ready.start(jax.random.key(0))
    after, found = ready.finish(state)
    score = jax.jit(partial(candidate_scores, model=scalar_model(MODEL)))
    raw_BC = jnp.concatenate([score(state.params, {}, put(ready.data(n), one_device)) for n in range(35)])
    # 35 batches of 8 hold each of the 35 comparisons 8 times; the demonstration is the first candidate of each, and the
    # bias is that of 16 of them
    mean = float(np.mean(np.asarray(normalised(raw_BC, after.extra))[:, 0]))
    assert mean == pytest.approx(0, abs=2e-3)
    assert found["reward_bias"] == pytest.approx(-float(np.mean(np.asarray(raw_BC)[:, 0])), abs=2e-3)
    assert abs(found["reward_bias"]) > 0.01


def test_the_best_is_chosen_and_samples_of_the_reference_set_gain_and_bias(folder, one_device):
    ready = task(folder, objective="choice", normalisation="reference")
    found, state, _ = finished(ready, one_device, updates=0)
    assert found["reward_gain"] > 0
    assert found["reward_gain"] != 1.0
    for name in ("reward_gain", "reward_bias"):
        assert found[name] == pytest.approx(float(state.extra[name]), rel=1e-6)


def test_ratings_are_predicted_and_order_the_answers(folder, one_device):
    found, _, _ = finished(task(folder, "rated.jsonl", objective="rating"), one_device, updates=0)
    # a head near 0 predicts about 4, so the error is about sqrt((9 + 2 * 4) / 3) = 2.4
    assert 1.0 < found["rating_rmse"] < 4.0
    assert 0.5 < found["rating_mean_absolute_error"] <= found["rating_rmse"]
    assert found["pairs"] == 4
    assert found["training_data"]["responses"] == 36 * 3


def test_ratings_need_a_file():
    with pytest.raises(ValueError, match=r"'rating' needs a file of ratings: set task\.comparisons"):
        RewardTask(reward=RewardConfig(objective="rating"))
