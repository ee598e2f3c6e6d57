"""Checkpoints on disk: damage is seen, the one before is taken, nothing is deleted; failed saves are survived."""

import gc
import json
import random
import shutil
import signal
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.dims import MESH_AXES
from gptjax.run import checkpoint, record
from gptjax.run.checkpoint import Checkpoints, split
from gptjax.run.exits import Preempted
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.run.restore import load_model
from gptjax.run.retention import Retention
from gptjax.run.stop import Stop
from gptjax.train.update import initial_state
from gptjax.tree import abstract

ABOUT = {"seconds": 1.5, "tokens": 7}


def first_state(width=32, dtype=jnp.float32):
    def make(key):
        params = {"matrix": jax.random.normal(key, (64, width), dtype), "bias": jnp.zeros(3)}
        return initial_state(params, optax.adam(1e-3), key, gain=jnp.ones(()))

    return jax.jit(make)(jax.random.key(0))


def at(state, step):
    return replace(state, step=jnp.int32(step), params=jax.tree.map(lambda x: x + step, state.params))


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


def saved(folder, state, steps=(4, 8)):
    checkpoints = Checkpoints(folder, keep=3)
    for step in steps:
        checkpoints.save(at(state, step), step, ABOUT | {"step": step}, score=-4.25)
    checkpoints.close()


def restored(folder, state):
    checkpoints = Checkpoints(folder, keep=3)
    try:
        return checkpoints.restore(abstract(state))
    finally:
        checkpoints.close()


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damages(raw: bytes, rng: random.Random, flips: int):
    """(name, bytes or None for a file that is gone)."""
    yield from (("half", raw[: len(raw) // 2]), ("empty", b""), ("gone", None))
    for _ in range(flips if raw else 0):
        place, bit = rng.randrange(len(raw)), rng.randrange(8)
        yield f"byte {place} bit {bit}", raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]


def damage_everything(folder, state, flips, capsys) -> dict[str, int]:
    """Damage each file of step 8 in each way; count what became of it."""
    saved(folder / "whole", state)
    rng, counts = random.Random(0), {"harmless": 0, "seen": 0}
    for path in files_of(folder / "whole" / "8"):
        for name, raw in damages(path.read_bytes(), rng, flips):
            trial = folder / "trial"
            shutil.copytree(folder / "whole", trial)
            target = trial / path.relative_to(folder / "whole")
            target.unlink() if raw is None else target.write_bytes(raw)
            before = len(files_of(trial))
            found, about = restored(trial, state)
            step = int(found.step)
            where = f"{target.relative_to(trial)}, {name}"
            assert same(found, at(state, step)), where
            assert about == ABOUT | {"step": step}, where
            assert len(files_of(trial)) == before, f"{where}: something was deleted"
            said = capsys.readouterr().err
            assert ("the checkpoint of step 8 is damaged (" in said and "step 4" in said) == (step == 4), where
            counts["seen" if step == 4 else "harmless"] += 1
            shutil.rmtree(trial)
    gc.collect()  # what Orbax left unfinished would warn when it is collected, and pytest counts that
    return counts


def test_damage_to_any_file_is_seen_or_harmless(tmp_path, one_device, capsys):
    counts = damage_everything(tmp_path, first_state(), 1, capsys)
    assert counts["seen"] > 30


@pytest.mark.slow
def test_twenty_flipped_bits_in_any_file_are_seen_or_harmless(tmp_path, one_device, capsys):
    counts = damage_everything(tmp_path, first_state(), 20, capsys)
    assert sum(counts.values()) > 300
    print(counts)


def test_a_flipped_bit_in_the_numbers_names_the_array(tmp_path, one_device, capsys):
    saved(tmp_path, first_state())
    largest = max((tmp_path / "8" / "model").rglob("*"), key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)
    found, _ = restored(tmp_path, first_state())
    assert int(found.step) == 4
    said = capsys.readouterr().err
    assert "the checkpoint of step 8 is damaged (model.params.matrix is not what was saved" in said
    assert "going on from step 4; it is kept as 8.damaged" in said


def test_a_part_that_cannot_be_loaded_leaves_nothing_that_was_never_awaited(tmp_path, one_device, capsys):
    saved(tmp_path, first_state())
    for path in files_of(tmp_path / "8" / "model" / "d"):
        path.write_bytes(b"")
    assert int(restored(tmp_path, first_state())[0].step) == 4
    assert "the checkpoint of step 8 is damaged (model/d/" in capsys.readouterr().err
    gc.collect()


def test_a_signal_while_loading_is_no_damage(tmp_path, one_device):
    state = first_state()
    saved(tmp_path / "checkpoints", state)
    wanted, stopped = split(abstract(state))["model"], 0
    load_model(tmp_path, wanted)  # compiles
    began = time.monotonic()
    load_model(tmp_path, wanted)
    seconds = time.monotonic() - began
    for part in range(1, 21):
        with Stop() as stop:
            signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGTERM))
            try:
                with stop.interruptible():
                    signal.setitimer(signal.ITIMER_REAL, seconds * part / 20)
                    load_model(tmp_path, wanted)
            except Preempted:
                stopped += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert stopped > 5


def test_a_run_that_fell_back_saves_that_step_again(tmp_path, one_device, capsys):
    state = first_state()
    saved(tmp_path, state)
    (tmp_path / "8" / "training" / "_METADATA").write_text("{")
    assert int(restored(tmp_path, state)[0].step) == 4
    assert "training/_METADATA" in capsys.readouterr().err
    saved(tmp_path, state, steps=[8])
    assert int(restored(tmp_path, state)[0].step) == 8


@pytest.mark.parametrize("damaged", [4, 8])
def test_metadata_that_orbax_does_not_open_costs_no_other_checkpoint(damaged, tmp_path, one_device, capsys):
    saved(tmp_path, first_state())
    path = tmp_path / str(damaged) / "_CHECKPOINT_METADATA"
    path.write_bytes(path.read_bytes().replace(b"init_timestamp", b"ynit_timestamp"))
    before = files_of(tmp_path)
    assert int(restored(tmp_path, first_state())[0].step) == 12 - damaged
    assert "the checkpoint of step 8 is damaged (_CHECKPOINT_METADATA" in capsys.readouterr().err or damaged == 4
    assert len(files_of(tmp_path)) == len(before)
    assert (tmp_path / ("4" if damaged == 4 else "8.damaged") / "_CHECKPOINT_METADATA").exists()


def test_with_every_checkpoint_damaged_nothing_is_deleted(tmp_path, one_device):
    saved(tmp_path, first_state())
    for step in ("4", "8"):
        (tmp_path / step / "_CHECKPOINT_METADATA").write_text("")
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=r"step 8: _CHECKPOINT_METADATA: .*step 4: .*nothing was del"):
        restored(tmp_path, first_state())
    assert files_of(tmp_path) == before


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, one_device):
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "letter.txt").write_text("mine")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match=r"step 8: _CHECKPOINT_METADATA: No such file"):
        restored(tmp_path, first_state())
    assert [path.name for path in files_of(tmp_path)] == ["letter.txt"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: first_state(width=16), r"model\.params\.matrix as float32\[64,32\], where this one has .*\[64,16\]"),
        (lambda: replace(first_state(), extra={}), r"is of another model: it holds .*model\.extra\.gain"),
        (lambda: replace(first_state(), frozen={"x": jnp.zeros(1)}), r"has no training\.frozen\.x"),
        (lambda: first_state(dtype=jnp.bfloat16), r"as float32\[64,32\], where this one has bfloat16\[64,32\]"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(other, words, tmp_path, one_device):
    saved(tmp_path, first_state())
    with pytest.raises(ValueError, match=words):
        restored(tmp_path, other())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "8"]


def test_a_checkpoint_of_a_newer_gptjax_is_refused(tmp_path, one_device, monkeypatch):
    monkeypatch.setattr(record, "FORMAT", 2)
    saved(tmp_path, first_state())
    monkeypatch.setattr(record, "FORMAT", 1)
    with pytest.raises(ValueError, match=r"in format 2; this is .* reads formats up to 1: upgrade"):
        restored(tmp_path, first_state())


def test_a_clock_that_jumped_changes_nothing(tmp_path, one_device):
    state = first_state()
    saved(tmp_path, state)
    path = tmp_path / "8" / "_CHECKPOINT_METADATA"
    text = json.loads(path.read_text())
    path.write_text(json.dumps(text | {"commit_timestamp_nsecs": 1, "init_timestamp_nsecs": 1}))  # 1970
    assert int(restored(tmp_path, state)[0].step) == 8
    saved(tmp_path, state, steps=[12, 16])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["12", "16", "8"]  # the oldest step goes, not the oldest date


def test_another_stage_refuses_a_damaged_model(tmp_path, one_device):
    state = first_state()
    saved(tmp_path / "checkpoints", state)
    wanted = {"params": abstract(state.params)}
    assert same(load_model(tmp_path, wanted)["params"], at(state, 8).params)
    with pytest.raises(ValueError, match=r"has no model\.extra\.bias"):
        load_model(tmp_path, {"extra": {"bias": abstract(state.step)}})
    largest = max((tmp_path / "checkpoints" / "8" / "model").rglob("*"), key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 4
    largest.write_bytes(raw)
    with pytest.raises(ValueError, match=r"of step 8, is damaged \(model\.params\.matrix.*nothing was deleted"):
        load_model(tmp_path, wanted)


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1, 1), (1, 4, 1, 1, 2), (2, 1, 2, 1, 2), (1, 1, 1, 8, 1)])
def test_every_layout_restores_the_same_bits(sizes, tmp_path):
    def placed(state, mesh):
        spread = {"matrix": PartitionSpec("fsdp", "tensor")}
        everywhere = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec())), state)
        params = {
            name: jax.device_put(x, NamedSharding(mesh, spread.get(name, PartitionSpec())))
            for name, x in everywhere.params.items()
        }
        return replace(everywhere, params=params)

    host = jax.tree.map(np.asarray, first_state())
    first = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(first):
        saved(tmp_path, placed(host, first), steps=[4])
    other = make_mesh(MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True))))
    with jax.set_mesh(other):
        found, _ = restored(tmp_path, placed(host, other))
    assert same(found, at(host, 4))
    assert found.params["matrix"].sharding.mesh == other


def save_each(checkpoints, state, steps):
    for step in steps:
        checkpoints.save(at(state, step), step, ABOUT)


def failing(monkeypatch, times):
    """The next background writes fail as on a full disk."""
    left = [times]
    real = checkpoint.ocp.training.Checkpointer.wait

    def wait(self):
        real(self)
        if left[0]:
            left[0] -= 1
            newest = self.directory / str(self.latest.step)
            shutil.rmtree(newest)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp.training.Checkpointer, "wait", wait)


def test_three_failed_saves_are_survived(tmp_path, one_device, monkeypatch, capsys):
    state, checkpoints = first_state(), Checkpoints(tmp_path, keep=2)
    checkpoints.save(at(state, 4), 4, ABOUT)
    checkpoints.wait()
    failing(monkeypatch, 3)
    save_each(checkpoints, state, (8, 12, 16, 20, 24))
    checkpoints.wait()
    said = capsys.readouterr().err
    for step, number in ((8, 1), (12, 2), (16, 3)):
        assert f"the checkpoint of step {step} could not be saved (No space left on device)" in said
        assert f"failure {number} of 5 in a row" in said
    assert "that of step 4 is the newest" in said
    assert checkpoints.steps() == [20, 24]
    checkpoints.close()
    assert same(restored(tmp_path, state)[0], at(state, 24))


def test_five_failed_saves_in_a_row_stop_the_run(tmp_path, one_device, monkeypatch):
    state, checkpoints = first_state(), Checkpoints(tmp_path, keep=2)
    checkpoints.save(at(state, 4), 4, ABOUT)
    checkpoints.wait()
    failing(monkeypatch, 5)
    with pytest.raises(ValueError, match=r"step 24 .*No space left.*step 4 is the newest\. 5 saves in a row"):
        save_each(checkpoints, state, (8, 12, 16, 20, 24, 28))
    assert same(restored(tmp_path, state)[0], at(state, 4))


def test_the_last_save_is_tried_again(tmp_path, one_device, monkeypatch):
    failing(monkeypatch, 2)
    state, checkpoints = first_state(), Checkpoints(tmp_path, keep=2, pause=0.0)
    checkpoints.save_now(at(state, 4), 4, ABOUT)
    assert checkpoints.steps() == [4]
    checkpoints.close()


def test_what_is_saved_is_the_state_at_that_moment(tmp_path, one_device):
    state, checkpoints = first_state(width=4096), Checkpoints(tmp_path, keep=1)
    expected = jax.tree.map(np.asarray, state)
    change = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    checkpoints.save(state, 4, ABOUT)
    for _ in range(3):
        state = change(state)
    checkpoints.close()
    assert same(restored(tmp_path, state)[0], expected)


def test_a_rollback_sets_later_checkpoints_aside(tmp_path, one_device):
    state = first_state()
    saved(tmp_path, state, steps=(4, 8, 12))
    checkpoints = Checkpoints(tmp_path, keep=3)
    found, _ = checkpoints.restore(abstract(state), before=8)
    assert int(found.step) == 4
    assert checkpoints.steps() == [4]
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["12.undone", "4", "8.undone"]


def test_a_best_checkpoint_outlives_newer_ones(tmp_path, one_device):
    state, keep = first_state(), Retention(newest=1, best=1)
    for step, score in ((1, -3.0), (2, -1.0), (3, float("nan")), (4, None), (5, -4.0)):
        checkpoints = Checkpoints(tmp_path, keep=keep)  # a restart between any two saves
        checkpoints.save(at(state, step), step, ABOUT, score=score)
        checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5"]
