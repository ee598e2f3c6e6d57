"""DPO, GRPO and rejection sampling through the real driver, from folders of stages that were never trained."""

import dataclasses
import gc
import json
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest

from gptjax import cli
from gptjax.data.pairs import preference_batch
from gptjax.data.preferences import Comparison, Response
from gptjax.data.tokenizer import train_tokenizer
from gptjax.eval.answers import Answer
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.driver import run
from gptjax.run.experiment import Experiment, Recipe, build_task, check_layout, outline_task, setup_of
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.run.metrics import read_metrics
from gptjax.run.tasks.dpo import DpoTask, pairs_fingerprint, reference_rows
from gptjax.run.tasks.grpo import GrpoTask
from gptjax.run.tasks.judge import Judge
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.rejection import RejectionTask, winner
from gptjax.run.tasks.reward import RewardTask
from gptjax.run.tasks.upstream import load_policy
from gptjax.serve.model import load
from gptjax.train.grpo import GrpoConfig
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.update import initial_state

TINY = ModelConfig(vocab_size=300, layers=1, width=16, heads=2, hidden=32, max_length=64)
TEXTS = [f"What does number {n} do? It adds {n} to the sum and returns the result." for n in range(40)]


def finished(folder, name, model, init, **extra):
    """A finished stage whose weights were never trained."""
    (folder / name).mkdir()
    train_tokenizer(TEXTS, model.vocab_size).save(folder / name / "tokenizer.model")
    (folder / name / "model.json").write_text(json.dumps(dataclasses.asdict(model)))
    (folder / name / "result.json").write_text(json.dumps({"task": name}))
    checkpoints = Checkpoints(folder / name / "checkpoints", keep=1)
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        params = jax.jit(init)(jax.random.key(len(name)))
        checkpoints.save(initial_state(params, optax.sgd(0.1), jax.random.key(0), **extra), 1, {})
    checkpoints.close()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A folder with finished stages `sft`, `reward` and `ppo`, and files of prompts and rankings."""
    folder = tmp_path_factory.mktemp("untrained")
    scalars = {"reward_gain": jax.numpy.ones(()), "reward_bias": jax.numpy.zeros(())}
    policy, scalar = language_model(TINY), scalar_model(TINY)
    finished(folder, "sft", TINY, policy.init)
    finished(folder, "reward", TINY, scalar.init, **scalars)
    finished(folder, "ppo", TINY, lambda key: {"policy": policy.init(key), "value": scalar.init(key)})
    (folder / "recipe.json").write_text(json.dumps({"name": "untrained", "stages": ["sft", "reward", "ppo"]}))
    prompts = [[{"role": "user", "content": f"{n}?"}] for n in range(24)]
    lines = [json.dumps({"messages": messages}) for messages in prompts]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    answers = [{"content": "It adds."}, {"content": "no", "ended": False}, {"content": "sum"}]
    ranked = [
        {"messages": messages, "responses": answers, "ranks": [1, 2, 2] if n % 4 else [1, 1, 1]}
        for n, messages in enumerate(prompts)
    ]
    (folder / "ranked.jsonl").write_text("\n".join(map(json.dumps, ranked)))
    return folder


@pytest.fixture
def one_device_runs(monkeypatch):
    """The driver and `load` as on a machine with a single device."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    monkeypatch.setattr("gptjax.run.driver.make_mesh", lambda config: mesh)
    monkeypatch.setattr("gptjax.serve.model.start_jax", lambda: None)


ADAM = OptimizerConfig(peak_lr=1e-2, schedule="constant")


def recipe(name, task, **settings):
    experiment = Experiment(task=task, model=TINY, optimizer=ADAM, **({"steps": 4, "batch_size": 4} | settings))
    return Recipe(name="tiny", stages={name: experiment})


def result(workdir, stage):
    return json.loads((workdir / stage / "result.json").read_text())["evaluation"]


def talks(workdir, stage, capsys):
    loaded = load(workdir, stage)
    capsys.readouterr()
    cli.main(["generate", str(workdir), "--stage", stage, "--prompt", "4?", "--max-tokens", "4", "--json"])
    assert json.loads(capsys.readouterr().out)["stage"] == stage
    return jax.tree.map(np.asarray, loaded.params)


def moved(params, folder):
    before = jax.tree.map(np.asarray, load(folder.parent, folder.name).params)
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, before)))


def dpo_task(folder, reward_from):
    return DpoTask(
        policy_from=str(folder / "sft"),
        reward_from=reward_from,
        comparisons=folder / "ranked.jsonl",
        prompt_tokens=16,
        answer_tokens=16,
        heldout_prompts=2,
        heldout_samples=1,
        best_of=1,
    )


def test_dpo_learns_the_ranking_from_ln_2_on_and_can_talk(untrained, one_device_runs, tmp_path, capsys):
    workdir = tmp_path / "run"
    report = run(recipe("dpo", dpo_task(untrained, None)), workdir)
    first, *_, last = [row for row in read_metrics(workdir / "dpo" / "metrics.jsonl") if "dpo/loss" in row]
    np.testing.assert_allclose(first["dpo/loss"], np.log(2), rtol=1e-4)
    assert (first["dpo/tie_fraction"], first["dpo/accuracy"]) == (1.0, 0.5)
    assert last["dpo/loss"] < first["dpo/loss"]
    found = result(workdir, "dpo")
    # 22 rankings to learn from, every fourth all ties, 2 pairs in each other
    assert (found["pairs"], found["tied_comparisons"], found["dropped_pairs"]) == (32, 6, 0)
    assert found["accuracy"] == 1.0
    assert moved(talks(workdir, "dpo", capsys), untrained / "sft") > 1e-3
    assert "The training margin rose" in report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_dpo_is_examined_like_ppo_where_there_is_a_reward_model(untrained, one_device_runs, tmp_path):
    run(recipe("dpo", dpo_task(untrained, str(untrained / "reward"))), tmp_path / "run")
    found = result(tmp_path / "run", "dpo")
    assert {"proxy_dpo", "proxy_sft", "end_rate_dpo", "accuracy", "pairs"} <= set(found)
    assert found["kl_nats"] != 0.0
    assert len(found["answers"]) == 2


def pairs(answers):
    comparisons = [
        Comparison(
            messages=[{"role": "user", "content": str(number)}],
            responses=[Response(content="a"), Response(content=answer)],
            ranks=[1, 2],
        )
        for number, answer in enumerate(answers)
    ]
    return preference_batch(comparisons, train_tokenizer(TEXTS, TINY.vocab_size), 16, pairs="all")[0]


def test_one_changed_answer_changes_the_fingerprint_though_as_many_pairs_are_left():
    assert pairs_fingerprint(pairs("bbb")) == pairs_fingerprint(pairs("bbb"))
    assert pairs_fingerprint(pairs("bbb")) != pairs_fingerprint(pairs("bbc"))


def test_reference_numbers_are_computed_once_and_then_read(tmp_path):
    rows, calls = pairs("bbbbb"), []

    def logps(batch):
        calls.append(len(batch.lengths_BC))
        return batch.tokens_BCT.sum(axis=2) / 7.0

    first = reference_rows(rows, tmp_path / "data" / "x.npz", logps, 2)
    again = reference_rows(jax.tree.map(lambda x: x[::-1], rows), tmp_path / "data" / "x.npz", logps, 2)
    assert calls == [2, 2, 2]
    np.testing.assert_array_equal(first.logp_ref_BC, (rows.tokens_BCT.sum(axis=2) / 7.0).astype(np.float32))
    np.testing.assert_array_equal(again.logp_ref_BC, first.logp_ref_BC[::-1])


def test_grpo_goes_on_from_ppo_updates_on_whole_groups_and_can_talk(untrained, one_device_runs, tmp_path, capsys):
    settings = GrpoConfig(group_size=3, minibatches=2, response_tokens=8)
    task = GrpoTask(
        policy_from=str(untrained / "ppo"),
        reward_from=str(untrained / "reward"),
        prompts=untrained / "prompts.jsonl",
        prompt_tokens=16,
        grpo=settings,
        heldout_prompts=2,
        heldout_samples=1,
        best_of=1,
    )
    report = run(recipe("grpo", task), tmp_path / "run")
    rows = [row for row in read_metrics(tmp_path / "run" / "grpo" / "metrics.jsonl") if "grpo/score" in row]
    assert len(rows) == 4
    assert rows[0]["grpo/kl_nats_per_sequence"] == 0.0  # policy = reference
    np.testing.assert_allclose([rows[0]["grpo/ratio_min"], rows[0]["grpo/ratio_max"]], 1.0, atol=1e-5)
    assert rows[2]["grpo/kl_nats_per_sequence"] != 0.0
    assert all(np.isfinite(value) for row in rows for value in row.values())
    found = result(tmp_path / "run", "grpo")
    assert {"proxy_grpo", "proxy_sft", "kl_nats", "end_rate_grpo", "answers"} <= set(found)
    assert moved(talks(tmp_path / "run", "grpo", capsys), untrained / "ppo") > 1e-3
    shown = report.read_text(encoding="utf-8")
    assert "The training proxy reward" in shown
    assert "after GRPO" in shown


def rejection_task(folder):
    return RejectionTask(
        policy_from=str(folder / "sft"),
        reward_from=str(folder / "reward"),
        prompts=folder / "prompts.jsonl",
        samples=3,
        prompt_tokens=16,
        answer_tokens=8,
        row_tokens=32,
        heldout_fraction=0.3,
        heldout_prompts=4,
    )


def canned(self, params, prompts, key, times):
    """Answers "b", "a" and one that was cut off, which scores highest; the last prompt's have no score."""
    count = len(prompts.lengths_B)
    triple = [Answer(text=text, ended=text != "cut", tokens=(1,)) for text in ("b", "a", "cut")]
    scores_BN = np.tile(np.array([0.0, 1.0, 2.0]), (count, 1))
    scores_BN[-1] = np.nan
    return scores_BN, np.zeros((count, 3)), triple * count


def test_rejection_sampling_tunes_on_the_winners(untrained, one_device_runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Judge, "answers", canned)
    run(recipe("rejection", rejection_task(untrained)), tmp_path / "run")
    lines = (tmp_path / "run" / "rejection" / "data" / "winners.jsonl").read_text().splitlines()
    won = [json.loads(line) for line in lines]
    # 22 prompts are learnt from, the last of them without a winner
    assert [line["messages"][-1] for line in won] == [{"role": "assistant", "content": "a"}] * 21
    assert [line["messages"][0]["content"] for line in won] == [f"{n}?" for n in range(21)]
    found = result(tmp_path / "run", "rejection")
    assert (found["winners"], found["prompts_without_winner"], found["unscored_samples"]) == (21, 1, 3)
    assert (found["proxy_samples"], found["proxy_winners"]) == (1.0, 1.0)
    np.testing.assert_allclose(found["best_of_n_kl_nats"], np.log(3) - 2 / 3)
    rows = [row for row in read_metrics(tmp_path / "run" / "rejection" / "metrics.jsonl") if "sft/tokens" in row]
    assert rows[-1]["sft/nats_per_token"] < rows[0]["sft/nats_per_token"]
    talks(tmp_path / "run", "rejection", capsys)


def test_without_a_finished_answer_nothing_wins(untrained, one_device_runs, tmp_path, monkeypatch):
    unended = [Answer(text="a", ended=False, tokens=(1,))] * 3
    monkeypatch.setattr(
        Judge,
        "answers",
        lambda self, params, prompts, *_: (
            np.zeros((len(prompts.lengths_B), 3)),
            None,
            unended * len(prompts.lengths_B),
        ),
    )
    with pytest.raises(ValueError, match=r"none of 66 answers .* both ended and got a score: raise task.answer_tokens"):
        run(recipe("rejection", rejection_task(untrained)), tmp_path / "run")


def test_the_winner_has_the_highest_score_among_those_that_ended():
    answers = [Answer(text=text, ended=ended, tokens=()) for text, ended in (("a", True), ("b", False), ("", True))]
    answers += [Answer(text="d", ended=True, tokens=()), Answer(text="e", ended=True, tokens=())]
    assert winner(np.array([0.0, 9.0, 9.0, 2.0, 2.0]), answers) == 3
    assert winner(np.array([0.0, 9.0, 9.0, np.nan, np.inf]), answers) == 0
    assert winner(np.full(5, np.nan), answers) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DpoTask(reward_from=None), "task.comparisons or task.reward_from must be given"),
        (lambda: RejectionTask(samples=1), "task.samples must be at least 2"),
        (lambda: RejectionTask(train_prompts=1), "task.train_prompts must be at least 2"),
        (lambda: RejectionTask(temperature=0.0), "task.temperature must be positive"),
    ],
)
def test_tasks_without_a_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_groups_must_divide_over_the_mesh():
    # 4 prompts in 2 minibatches are 2 groups, which do not divide over fsdp 4
    grpo = GrpoTask(prompt_tokens=16, grpo=GrpoConfig(minibatches=2, response_tokens=8))
    experiment = recipe("grpo", grpo).stages["grpo"]
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    with pytest.raises(ValueError, match=r"batch_size / task.grpo.minibatches 2 is not a multiple"):
        check_layout(experiment, mesh)


def exact(prompt, answer, ended):
    """A program: the answer repeats the prompt's number; what it found out beside."""
    right = answer == prompt["messages"][0]["content"].removesuffix("?")
    return {"reward": float(right) - 0.1 * len(answer), "right": right, "ended": ended}


@pytest.mark.parametrize("kind", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_program_rewards_the_policy_in_place_of_a_reward_model(kind, untrained, one_device_runs, tmp_path):
    about = {"policy_from": str(untrained / "sft"), "reward_from": None, "program": f"{__file__}:exact"}
    about |= {"prompts": untrained / "prompts.jsonl", "prompt_tokens": 16, "heldout_prompts": 2, "best_of": 2}
    if kind == "grpo":
        task = GrpoTask(**about, grpo=GrpoConfig(group_size=2, response_tokens=8))
    else:
        task = PpoTask(**about, ppo=PpoConfig(minibatches=1, response_tokens=8, missing_end_penalty=0.0))
    run(recipe(kind, task, steps=2), tmp_path / "run")
    found = result(tmp_path / "run", kind)
    assert found[f"proxy_{kind}"] == found[f"gold_{kind}"] == found[f"reward_{kind}"]
    assert {f"right_{kind}", "right_sft", "ended_sft", "gold_gain_ci"} <= set(found)
    np.testing.assert_allclose(found[f"ended_{kind}"], found[f"end_rate_{kind}"])
    rows = [row for row in read_metrics(tmp_path / "run" / kind / "metrics.jsonl") if f"{kind}/score" in row]
    assert len(rows) == 2
    assert all(np.isfinite(row[f"{kind}/score"]) for row in rows)


def built(task, model, folder, mesh):
    """The task of a stage with these settings, and its outline."""
    experiment = Experiment(task=task, model=model, optimizer=ADAM, steps=4, batch_size=4)
    setup = setup_of(experiment, folder=folder, mesh=mesh, stage_folder=Path)
    return build_task(experiment, setup), outline_task(experiment, setup)


def program_task(folder, **settings):
    """PPO from the stage `folder`, with a program for a reward."""
    about = {"reward_from": None, "program": f"{__file__}:exact", "prompts": folder.parent / "prompts.jsonl"}
    about |= {"policy_from": str(folder), "prompt_tokens": 16, "ppo": PpoConfig(response_tokens=8)}
    return PpoTask(**(about | settings))


@pytest.mark.parametrize("kind", ["reward", "ppo"])
def test_a_scalar_model_starts_from_a_policy_with_an_unembedding_of_its_own(kind, untrained, one_device, tmp_path):
    model = dataclasses.replace(TINY, tied=False)
    for name in ("prompts.jsonl", "ranked.jsonl"):
        (tmp_path / name).write_bytes((untrained / name).read_bytes())
    finished(tmp_path, "sft", model, language_model(model).init)
    if kind == "ppo":
        task = program_task(tmp_path / "sft")
    else:
        task = RewardTask(start_from=str(tmp_path / "sft"), comparisons=tmp_path / "ranked.jsonl")
    task, outline = built(task, model, tmp_path / "stage", one_device)
    state = task.start(jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, jax.eval_shape(outline.init, jax.random.key(0)))
    first = load_policy(language_model(model), tmp_path / "sft", one_device)
    trunk = state.params["trunk"] if kind == "reward" else state.params["value"]["trunk"]
    chex.assert_trees_all_equal(trunk, {name: first[name] for name in trunk})


@pytest.mark.parametrize(("reference", "held"), [("copy", 4), ("bfloat16", 2)])
def test_beside_its_state_ppo_keeps_the_reference_and_nothing_else(reference, held, untrained, one_device, tmp_path):
    gc.collect()
    before = {id(x) for x in jax.live_arrays()}
    task, _ = built(program_task(untrained / "sft", reference=reference), TINY, tmp_path, one_device)
    gc.collect()
    new = sum(x.nbytes for x in jax.live_arrays() if id(x) not in before)
    parameters = sum(x.size for x in jax.tree.leaves(task.frozen_models))
    assert held * parameters <= new < 1.1 * held * parameters


def skipping(prompt, answer, ended):
    """A program that has nothing to say of every answer to one prompt, and of long ones to the others."""
    return float("nan") if prompt["messages"][0]["content"] == "22?" or len(answer) > 12 else 1.0


def test_answers_that_a_program_skips_are_left_out_of_every_figure(untrained, one_device, tmp_path):
    task = program_task(untrained / "sft", program=f"{__file__}:skipping", heldout_samples=2, best_of=4)
    task, _ = built(task, TINY, tmp_path, one_device)
    state = task.start(jax.random.key(0))
    figures, (_, found) = task.evaluate(state), task.finish(state)
    assert figures["eval/proxy_score"] == figures["eval/reward"] == figures["ppo/gold_score"] == 1.0
    assert [found[name] for name in ("proxy_ppo", "proxy_sft", "gold_ppo", "gold_sft", "reward_ppo")] == [1.0] * 5
    assert all(row["gold"] == row["proxy"] == 1.0 for row in found["best_of_n"])
    assert "nan" not in json.dumps({name: value for name, value in found.items() if name != "answers"}).lower()
