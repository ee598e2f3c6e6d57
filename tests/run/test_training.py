"""The loop on a model of four numbers: signals, faults, rollbacks and restarts anywhere end in the same bits."""

import dataclasses
import os
import signal
import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from log_values import log_values
from stage import run_stage as run
from stage import tiny

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.exits import NumericalFaultError, Preempted
from gptjax.run.experiment import Experiment, build_task, setup_of
from gptjax.run.faults import FaultsConfig, repeated
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.run.meter import Meter
from gptjax.run.metrics import MetricsLog, read_metrics
from gptjax.run.stop import Stop
from gptjax.run.task import Task
from gptjax.run.tasks.lm import LmTask
from gptjax.train.update import advance, initial_state
from gptjax.tree import layout, named_leaves, outcome

ADAM = optax.adam(0.05)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Points:
    x_BD: object


class Crash(Exception):
    """Stands for kill -9."""


def points(position, scale=1.0):
    return Points(x_BD=(scale * np.random.default_rng(position).normal(1.0, 0.1, (8, 4))).astype(np.float32))


def step(state, batch):
    loss, grads = jax.value_and_grad(lambda w: jnp.mean(jnp.square(batch.x_BD - w[None])))(state.params["w"])
    after, figures = advance(state, {"w": grads}, ADAM, loss=loss)
    return after, {"toy/loss": loss, "toy/points": batch.x_BD.shape[0]} | figures


def toy(**changes):
    task = Task(
        init=lambda key: initial_state({"w": jax.random.normal(key, (4,))}, ADAM, key),
        data=points,
        step=step,
        evaluate=lambda state: {"eval/norm": float(optax.tree.norm(state.params))},
        finish=lambda state: (state, {"w": np.asarray(state.params["w"]).tolist()}),
        tokens="toy/points",
        loss="toy/loss",
        data_fingerprint="toy",
    )
    return replace(task, **changes)


def experiment(**changes):
    settings = {"steps": 30, "batch_size": 8, "save_every": 5, "evaluate_every": 7, **changes}
    model = ModelConfig(vocab_size=4, layers=1, width=4, heads=1, max_length=4)
    return Experiment(task=LmTask(), model=model, optimizer=OptimizerConfig(peak_lr=0.1), **settings)


def bits(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def assert_same(a, b, folder_a, folder_b):
    assert bits(a) == bits(b)
    assert log_values(folder_a / "metrics.jsonl") == log_values(folder_b / "metrics.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(final state, folder) of a run of 30 steps that nobody touched."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        return run(folder, toy(), experiment())[0], folder


def told(when, function, number=signal.SIGTERM):
    """The function, and a signal to this process before its n-th call ends."""
    calls = []

    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == when:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    return wrapped


@pytest.mark.parametrize(
    ("place", "call", "saved", "number"),
    [
        ("data", 13, 12, signal.SIGINT),
        ("evaluate", 2, 14, signal.SIGTERM),
        ("evaluate", 5, 30, signal.SIGTERM),  # the one after the last step
        ("finish", 1, 30, signal.SIGTERM),
        ("step", 1, 1, signal.SIGTERM),  # while it is traced and compiled
    ],
)
def test_a_signal_anywhere_saves_that_step_and_the_same_call_goes_on(
    place, call, saved, number, tmp_path, one_device, undisturbed, capfd
):
    task = toy(**{place: told(call, getattr(toy(), place), number)})
    with pytest.raises(Preempted, match=f"SIG.*: step {saved} of stage toy is saved"):
        run(tmp_path, task, experiment())
    assert "saving at the next safe point" in capfd.readouterr().err
    assert sorted(map(int, os.listdir(tmp_path / "checkpoints")))[-1] == saved
    state, _ = run(tmp_path, toy(), experiment())
    assert_same(state, undisturbed[0], tmp_path, undisturbed[1])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_during_a_save_waits_for_it(tmp_path, one_device, undisturbed, monkeypatch):
    real = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", told(2, real))
    with pytest.raises(Preempted, match="step 10 of stage toy is saved"):
        run(tmp_path, toy(), experiment())
    monkeypatch.setattr(Checkpoints, "save", real)
    state, _ = run(tmp_path, toy(), experiment())
    assert_same(state, undisturbed[0], tmp_path, undisturbed[1])
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_between_the_updates_on_a_rollout_a_signal_waits_for_the_last_of_them(tmp_path, one_device):
    class Telling(MetricsLog):
        def write(self, step, metrics):
            super().write(step, metrics)
            if step == 14 and "toy/loss" in metrics:
                os.kill(os.getpid(), signal.SIGTERM)

    def collect(state, frozen, batch, key):
        return Points(x_BD=batch.x_BD + jax.random.normal(key, (1, 4)) + state.params["w"][None])

    task, settings = toy(collect=collect, updates_per_batch=4), experiment(steps=24, save_every=8, evaluate_every=5)
    whole, _ = run(tmp_path / "whole", task, settings)
    with pytest.raises(Preempted, match="step 16 of stage toy is saved"):
        run(tmp_path / "told", task, settings, Telling)
    resumed, _ = run(tmp_path / "told", task, settings)
    assert_same(resumed, whole, tmp_path / "told", tmp_path / "whole")


def test_a_second_signal_ends_the_process(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (codes, stop.asked(1), stop.reason) == ([], True, "SIGTERM")
        os.kill(os.getpid(), signal.SIGINT)
    assert codes == [130]


def crashing(position):
    def data(at):
        if at == position:
            raise Crash
        return points(at)

    return data


def test_time_is_accounted_for_and_repeated_steps_count_as_lost(tmp_path, one_device, undisturbed):
    began = time.monotonic()
    with pytest.raises(Crash):
        run(tmp_path, toy(data=crashing(18)), experiment())
    middle = time.monotonic()
    state, about = run(tmp_path, toy(), experiment())
    wall = time.monotonic() - middle
    assert_same(state, undisturbed[0], tmp_path, undisturbed[1])
    uses = about["seconds_by_use"]
    assert sum(uses.values()) == pytest.approx(about["seconds"])
    # the second process, and the first one until its last checkpoint
    assert wall * 0.98 <= about["seconds"] <= time.monotonic() - began
    assert all(uses[use] > 0 for use in ("init", "restore", "compile", "data", "step", "evaluate", "save", "lost"))
    assert about["reached"] == 17
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "perf/step_seconds" in row]
    assert rows
    assert all("perf/compile_seconds" in row and "perf/seconds_per_step" in row for row in rows)


def spoiled(positions, value=np.nan):
    """Data of which some batches make the loss whatever `value` does."""

    def data(position):
        batch = points(position)
        if position in positions:
            batch.x_BD[0, 0] = value
        return batch

    return data


def test_one_bad_batch_costs_one_update(tmp_path, one_device):
    state, about = run(tmp_path, toy(data=spoiled({12})), experiment())
    assert int(state.extra["updates_skipped"]) == 1
    skipped = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if row.get("optim/updates_skipped")]
    assert (skipped, about["rollbacks"]) == ([13], 0)
    assert np.isfinite(np.asarray(state.params["w"])).all()


@pytest.mark.parametrize("crash", [None, 16, 19])
def test_many_bad_batches_in_a_row_are_passed_over(crash, tmp_path, one_device):
    # updates 13 to 17 are bad; the checkpoint before is that of step 10; batches 10 to 16 are passed over
    data = spoiled(set(range(12, 17)))
    if crash is not None:

        def dying(position):
            if position == crash:
                raise Crash
            return data(position)

        with pytest.raises(Crash):
            run(tmp_path / "bad", toy(data=dying), experiment())
    state, about = run(tmp_path / "bad", toy(data=data), experiment())
    clean = toy(data=lambda position: points(position if position < 10 else position + 7))
    expected, _ = run(tmp_path / "clean", clean, experiment())
    assert (int(state.extra["data_offset"]), about["rollbacks"]) == (7, 1)
    assert bits(state.params) == bits(expected.params)
    assert bits(state.opt_state) == bits(expected.opt_state)
    assert log_values(tmp_path / "bad" / "metrics.jsonl") == log_values(tmp_path / "clean" / "metrics.jsonl")


def test_neither_compiling_nor_going_back_counts_as_the_time_of_a_step(tmp_path, one_device, monkeypatch):
    # by a clock that goes a second with every batch, and far ahead with what is no step
    seconds, data, restore = [0.0], spoiled(set(range(12, 17))), Checkpoints.restore

    def passing(length, function):
        def wrapped(*arguments, **options):
            seconds[0] += length
            return function(*arguments, **options)

        return wrapped

    monkeypatch.setattr("gptjax.run.training.Meter", lambda *figures: Meter(*figures, clock=lambda: seconds[0]))
    monkeypatch.setattr(Checkpoints, "restore", passing(1000.0, restore))
    task = toy(data=passing(1.0, data), step=passing(1000.0, step))
    _, about = run(tmp_path, task, experiment(save_every=10, evaluate_every=None))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    speeds = {row["step"]: row["perf/seconds_per_step"] for row in rows if "perf/seconds_per_step" in row}
    assert about["rollbacks"] == 1
    assert speeds == {10: 0.9, 20: 1.0, 30: 1.0}  # the first of all batches comes before compiling


def test_a_spike_of_the_loss_is_passed_over_if_asked_for(tmp_path, one_device, capsys):
    data = spoiled(set(range(41, 44)), 50.0)
    faults = FaultsConfig(spike_deviations=20.0, bad_steps=3)
    _, about = run(tmp_path, toy(data=data), experiment(steps=60, save_every=20, faults=faults))
    assert about["rollbacks"] == 1
    assert "updates 42 to 44 were not finite, or had spikes for a loss: back to step 40" in capsys.readouterr().err
    assert max(row["toy/loss"] for row in read_metrics(tmp_path / "metrics.jsonl")[35:] if "toy/loss" in row) < 1


def test_a_state_is_read_back_with_no_other_beside_it(tmp_path, one_device, monkeypatch):
    # devices that are just large enough for a run must be so for its restart and for its way back
    def states():
        return sum(x.shape == (4,) for x in jax.live_arrays())

    def counting(checkpoints, *arguments, **options):
        checkpoints.wait()  # a save under way has its own copy
        alive.append(states())
        return real(checkpoints, *arguments, **options)

    before, alive, real = states(), [], Checkpoints.restore
    with pytest.raises(Crash):
        run(tmp_path, toy(data=crashing(8)), experiment())
    monkeypatch.setattr(Checkpoints, "restore", counting)
    _, about = run(tmp_path, toy(data=spoiled(set(range(12, 17)))), experiment())
    assert about["rollbacks"] == 1
    assert alive == [before, before]


def test_the_shapes_that_are_asked_for_are_those_of_the_state(tmp_path):
    settings = tiny(tmp_path, optimizer=OptimizerConfig(peak_lr=1e-3, offload=True))
    mesh, key = make_mesh(settings.mesh, jax.devices()[:2]), jax.random.key(0)
    with jax.set_mesh(mesh):
        setup = setup_of(settings, folder=tmp_path, mesh=mesh, stage_folder=lambda name: tmp_path)
        task = build_task(settings, setup)
        made, said = named_leaves(jax.jit(task.init)(key)), named_leaves(outcome(task.init, key, mesh=mesh))
    assert list(made) == list(said)
    for name, x in made.items():
        assert layout(x) == layout(said[name]), name
        assert x.sharding.is_equivalent_to(said[name].sharding, x.ndim), name
        on_host = x.sharding.memory_kind == "pinned_host"
        assert on_host == (said[name].sharding.memory_kind == "pinned_host"), name
        assert on_host == (name.startswith("opt_state") and x.ndim > 0), name


def test_a_fault_that_stays_stops_the_run(tmp_path, one_device):
    data = spoiled(set(range(12, 1000)))
    with pytest.raises(NumericalFaultError, match=r"updates \d+ to \d+ .*after 2 rollbacks.*checkpoints before .*good"):
        run(tmp_path, toy(data=data), experiment())
    assert "10" in os.listdir(tmp_path / "checkpoints")


def test_a_fault_from_the_beginning_stops_the_run(tmp_path, one_device):
    with pytest.raises(NumericalFaultError, match=r"updates 1 to 5 .*no checkpoint before them"):
        run(tmp_path, toy(data=spoiled(set(range(100)))), experiment())


def test_a_step_made_twice_changes_nothing(tmp_path, one_device, undisturbed):
    state, _ = run(tmp_path, toy(), experiment(faults=FaultsConfig(replay_every=4)))
    assert_same(state, undisturbed[0], tmp_path, undisturbed[1])


def test_a_device_that_computes_wrongly_is_found(one_device):
    calls = []

    def flaky(state, batch):
        after, metrics = jax.jit(step)(state, batch)
        calls.append(1)
        w = np.array(after.params["w"])
        w.view(np.uint32)[2] ^= 4 * (len(calls) == 2)  # one bit, in the second of two equal calls
        return dataclasses.replace(after, params={"w": jnp.asarray(w)}), metrics

    state, batch = toy().init(jax.random.key(0)), points(0)
    with pytest.raises(NumericalFaultError, match=r"step 15, made twice .*1 arrays differ, such as 0\.params\.w\)"):
        repeated(flaky, state, batch, 15)
    assert int(repeated(flaky, state, batch, 15)[0].step) == 1


def test_changed_data_is_refused(tmp_path, one_device):
    with pytest.raises(Crash):
        run(tmp_path, toy(data=crashing(12)), experiment())
    with pytest.raises(ValueError, match=r"data or the tokenizer changed .*fingerprint toy then, other now"):
        run(tmp_path, toy(data_fingerprint="other"), experiment())


def test_a_branch_goes_on_from_its_trunk_and_other_data_are_refused_by_the_trunks_name(
    tmp_path, one_device, undisturbed
):
    trunk = undisturbed[1]
    _, about = run(tmp_path / "branch", toy(), experiment(steps=35), trunk=trunk)
    assert about["tokens"] == 35 * 8
    message = rf"checkpoint in {trunk}/checkpoints \(fingerprint toy then, other now\): .*leave out branch_from"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "changed", toy(data_fingerprint="other"), experiment(steps=35), trunk=trunk)
    for folder, words in ((tmp_path / "none", "no checkpoint in .*none/checkpoints"), (trunk, "ended at step 30")):
        with pytest.raises(ValueError, match=rf"branch_from: .*{words}"):
            run(tmp_path / "other", toy(), experiment(), trunk=folder)
    assert not (tmp_path / "none").exists()
