"""The optimizer's state in the hosts' memory: the same bits, through steps, saves, restores and a change of mind."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from stage import tiny, trained

from gptjax.run.experiment import outline_task, setup_of
from gptjax.run.mesh import make_mesh
from gptjax.run.plan.compile import plan_experiment
from gptjax.run.record import read_record
from gptjax.tree import fingerprints, named_leaves


def offloaded(experiment):
    return replace(experiment, optimizer=replace(experiment.optimizer, offload=True))


def marks(folder, step):
    return read_record(folder / "checkpoints" / str(step))["fingerprints"]


@pytest.mark.parametrize("started_offloaded", [False, True])
def test_a_run_is_the_same_bit_for_bit_and_can_go_on_either_way(tmp_path, started_offloaded):
    first, second = tiny(tmp_path), offloaded(tiny(tmp_path))
    if started_offloaded:
        first, second = second, first
    losses = [row.get("lm/nats_per_token") for row in trained(first, tmp_path)]
    whole = marks(tmp_path, first.steps)
    assert len(losses) >= first.steps
    for done in (4, 6):  # as after a kill: the rest is made the other way
        (tmp_path / "checkpoints" / str(done)).rename(tmp_path / f"gone{done}")
    assert [row.get("lm/nats_per_token") for row in trained(second, tmp_path)] == losses
    assert marks(tmp_path, first.steps) == whole


def test_only_scalars_stay_on_the_devices_and_layouts_are_kept(tmp_path):
    states, mesh = [], make_mesh(tiny(tmp_path).mesh, jax.devices()[:2])
    with jax.set_mesh(mesh):
        for settings in (tiny(tmp_path), offloaded(tiny(tmp_path))):
            setup = setup_of(settings, folder=tmp_path, mesh=mesh, stage_folder=lambda name: tmp_path)
            states.append(jax.jit(outline_task(settings, setup).init)(jax.random.key(0)))
        assert fingerprints(states[0]) == fingerprints(states[1])
    here, there = (named_leaves(state.opt_state) for state in states)
    assert len(here) > 10
    for name, leaf in there.items():
        assert leaf.sharding.memory_kind == ("pinned_host" if leaf.ndim else "device"), name
        assert leaf.sharding.spec == here[name].sharding.spec, name
        assert np.array_equal(leaf, here[name])
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(states[1].params)} == {"device"}


def test_a_plan_counts_no_averages_on_the_devices(tmp_path):
    here = plan_experiment(tiny(tmp_path), jax.devices()[:2])[0].memory
    there = plan_experiment(offloaded(tiny(tmp_path)), jax.devices()[:2])[0].memory
    assert there.parameters == here.parameters
    assert there.optimizer < 100 < 2 * here.parameters <= here.optimizer
    assert (here.in_host, there.in_host) == (0, here.optimizer - there.optimizer)
    assert there.other_arguments == here.other_arguments
    assert there.peak == here.peak - there.in_host  # on a CPU, where everything is counted as alive at once


def test_devices_without_pinned_host_memory_are_named(tmp_path, monkeypatch):
    class Device:
        device_kind = "toy"

        def addressable_memories(self):
            return []

    monkeypatch.setattr("gptjax.memory.jax", SimpleNamespace(devices=lambda: [Device()]))
    with pytest.raises(ValueError, match=r"optimizer\.offload needs pinned host memory, which toy lacks"):
        trained(offloaded(tiny(tmp_path)), tmp_path)
