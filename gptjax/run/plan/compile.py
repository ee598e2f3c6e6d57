"""Compile an experiment for devices that are not there, and say what it would take: memory, FLOPs, bytes, time."""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gptjax.run.chips import Chip, chip
from gptjax.run.experiment import Experiment, check_layout, outline_task, setup_of
from gptjax.run.mesh import count_slices, make_mesh, with_specs
from gptjax.run.plan import hlo
from gptjax.run.plan.memory_traffic import memory_traffic
from gptjax.run.record import first_line
from gptjax.run.task import Outline
from gptjax.tree import outcome, placed


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device.

    peak: what is alive at once, as XLA for TPU states it; elsewhere arguments and temporaries together.
    temporaries: the room that XLA sets aside, gaps included.  in_host: arguments in the host's memory, not in `peak`.
    """

    parameters: int
    optimizer: int
    other_arguments: int
    temporaries: int
    in_host: int
    peak: int
    capacity: int | None

    @property
    def missing(self) -> int:
        """Bytes beyond the device's memory; 0 if it fits or the device is unknown."""
        return 0 if self.capacity is None else max(0, self.peak - self.capacity)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Collectives of one kind over one set of axes: how often they run, and the bytes that a device sends."""

    kind: str
    axes: str
    network: str
    runs: int
    payload_bytes: int
    sent_bytes: float


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds on each resource if it were the only one, at peak rates.

    `fastest` assumes that all overlap, `slowest` that nothing does; no collective's latency and no input are counted.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def fastest(self) -> float:
        """The largest of the four."""
        return max(self.compute, self.hbm, self.ici, self.dcn)

    @property
    def slowest(self) -> float:
        """Their sum."""
        return self.compute + self.hbm + self.ici + self.dcn

    @property
    def binds(self) -> str:
        """The resource that `fastest` waits for."""
        return max(("compute", "hbm", "ici", "dcn"), key=lambda name: getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class ProgramPlan:
    """One compiled program: `step`, or `collect`, the rollout of reinforcement learning.

    tokens: positions that it computes, padding included.  model_flops: without what is recomputed, of all devices.
    hbm_bytes: read and written by each device.  peak_flops: of a device, None if unknown, as is its roofline then.
    """

    name: str
    tokens: int
    model_flops: float
    memory: Memory
    traffic: list[Traffic]
    hbm_bytes: int
    compile_seconds: float
    peak_flops: float | None
    roofline: Roofline | None


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of "v5e:16x16" (needs libtpu), or of "cpu:8".

    Raises:
        ValueError: no such topology, or libtpu is not installed.
    """
    generation, _, shape = topology.partition(":")
    if slices < 1:
        raise ValueError(f"--slices must be at least 1, got {slices}")
    if generation == "cpu":
        devices = jax.devices("cpu")
        if not shape.isdigit() or int(shape) > len(devices) or slices > 1:
            raise ValueError(f"--topology {topology}: write cpu:N with N up to {len(devices)} here, and one slice")
        return devices[: int(shape)]
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"--topology {topology} needs libtpu: pip install -e '.[tpu]' in the repository, or plan for cpu:8"
        ) from None
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices)
    except Exception as error:
        raise ValueError(
            f"--topology {topology} is not one that libtpu knows (such as v5e:16x16): {first_line(error)}"
        ) from error


def plan_experiment(experiment: Experiment, devices: list[Any]) -> list[ProgramPlan]:
    """Compile the programs of the experiment's task for the devices, without its data.

    Raises:
        ValueError: the experiment's mesh or sizes do not go with the devices.
    """
    mesh = make_mesh(experiment.mesh, devices)
    check_layout(experiment, mesh)
    return [_planned(name, program, mesh) for name, program in _programs(experiment, mesh)]


@dataclass(frozen=True, kw_only=True)
class _Program:
    function: Any
    arguments: tuple[Any, ...]  # of ShapeDtypeStructs with layouts; the state comes first
    donate: bool
    tokens: int
    flops: float
    hardware_flops: float


def _programs(experiment: Experiment, mesh: Mesh) -> Iterator[tuple[str, _Program]]:
    setup = setup_of(experiment, folder=Path(), mesh=mesh, stage_folder=Path)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        made: Outline = outline_task(experiment, setup)
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = outcome(made.init, key, mesh=mesh)
        batch = with_specs(lambda spec, x: x.update(sharding=NamedSharding(mesh, spec)), made.batch)
        if made.collect is not None:
            frozen = outcome(made.frozen_models, key, mesh=mesh)
            key = placed(key, mesh)
            arguments = (state, frozen, batch, key)
            batch = outcome(made.collect, *arguments, mesh=mesh)
            yield "collect", _Program(
                function=made.collect, arguments=arguments, donate=False, tokens=made.collect_tokens,
                flops=made.collect_flops, hardware_flops=made.collect_flops,
            )  # fmt: skip
        recomputed = 4 / 3 if experiment.model.remat in ("full", "offload", "attention") else 1.0
        yield "step", _Program(
            function=made.step, arguments=(state, batch), donate=True, tokens=made.step_tokens,
            flops=made.step_flops, hardware_flops=made.step_flops * recomputed,
        )  # fmt: skip


def _planned(name: str, program: _Program, mesh: Mesh) -> ProgramPlan:
    began = time.monotonic()
    platform = mesh.devices.flat[0].platform
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        # what a program does not read, such as the optimizer's state in a rollout, lies on the devices all the same
        jitted = jax.jit(program.function, donate_argnums=0 if program.donate else (), keep_unused=True)
        compiled = jitted.trace(*program.arguments).lower(lowering_platforms=(platform,)).compile()
    seconds = time.monotonic() - began
    module = hlo.parsed(compiled.as_text() or "")
    found = hlo.collectives(module, [device.id for device in mesh.devices.flat])
    used = chip(mesh.devices.flat[0].device_kind)
    moved = memory_traffic(module)
    return ProgramPlan(
        name=name,
        tokens=program.tokens,
        model_flops=program.flops,
        memory=_memory(compiled, program.arguments, used, platform),
        traffic=_traffic(found, mesh),
        hbm_bytes=moved,
        compile_seconds=seconds,
        peak_flops=None if used is None else used.flops,
        roofline=None if used is None else _roofline(program, found, moved, used, mesh),
    )


def _memory(compiled: Any, given: tuple[Any, ...], used: Chip | None, platform: str) -> Memory:
    """XLA for TPU states arguments in the host's memory apart but counts them in the peak; for CPU it is all one."""
    figures, state = compiled.memory_analysis(), given[0]
    parameters, optimizer, in_host = bytes_each(state.params), bytes_each(state.opt_state), bytes_each(given, host=True)
    arguments = figures.argument_size_in_bytes + figures.host_argument_size_in_bytes - in_host
    temporaries = figures.temp_size_in_bytes
    kept = max(0, figures.output_size_in_bytes - figures.alias_size_in_bytes)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        other_arguments=arguments - parameters - optimizer,
        temporaries=temporaries,
        in_host=in_host,
        peak=figures.peak_memory_in_bytes - in_host if platform == "tpu" else arguments + temporaries + kept,
        capacity=None if used is None else int(used.hbm_bytes),
    )


def bytes_each(tree: Any, *, host: bool = False) -> int:
    """Bytes on one device, or in its host's memory, of ShapeDtypeStructs with layouts."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if (leaf.sharding.memory_kind == "pinned_host") == host]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def axes_of(members: tuple[int, ...], mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes along which the members of a group of devices differ; members count devices in the mesh's order."""
    places = np.array(np.unravel_index(np.array(members), mesh.devices.shape))
    return tuple(axis for axis, place in zip(mesh.axis_names, places, strict=True) if len(set(place.tolist())) > 1)


def _network(members: tuple[int, ...], mesh: Mesh) -> str:
    return "dcn" if count_slices([mesh.devices.flat[member] for member in members]) > 1 else "ici"


def _traffic(found: list[hlo.Collective], mesh: Mesh) -> list[Traffic]:
    grouped: dict[tuple[str, str, str], list[hlo.Collective]] = {}
    for one in found:
        key = (one.kind, " x ".join(axes_of(one.members, mesh)), _network(one.members, mesh))
        grouped.setdefault(key, []).append(one)
    rows = [
        Traffic(
            kind=kind, axes=axes, network=network, runs=sum(one.times for one in group),
            payload_bytes=sum(one.payload * one.times for one in group), sent_bytes=sum(one.traffic for one in group),
        )
        for (kind, axes, network), group in grouped.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row.sent_bytes)


def _roofline(program: _Program, found: list[hlo.Collective], moved: int, used: Chip, mesh: Mesh) -> Roofline:
    """A collective over ICI has the links of the torus directions in which its members lie apart."""
    seconds = {"ici": 0.0, "dcn": 0.0}
    for one in found:
        network = _network(one.members, mesh)
        places = [getattr(mesh.devices.flat[member], "coords", (member,)) for member in one.members]
        directions = sum(len({place[d] for place in places}) > 1 for d in range(len(places[0])))
        share = min(1.0, max(1, directions) / used.ici_dims)
        seconds[network] += one.traffic / (used.dcn_bandwidth if network == "dcn" else used.ici_bandwidth * share)
    return Roofline(compute=program.hardware_flops / mesh.size / used.flops, hbm=moved / used.hbm_bandwidth, **seconds)
