"""The mesh of a run: five named axes that always exist, explicit sharding, and how a host batch gets onto them."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from gptjax import dims


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Length of each mesh axis; `data` None takes the devices that the others leave.

    data: copies of the parameters (gradients cross slow links).  fsdp: parameters and batch rows are spread.
    expert: experts and batch rows are spread.  context: positions are spread.  tensor: heads, hidden and vocabulary.
    """

    data: int | None = None
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for axis in dims.MESH_AXES:
            size = getattr(self, axis)
            if size is not None and size < 1:
                raise ValueError(f"mesh.{axis} must be at least 1, got {size}")

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Length of each axis in the order of dims.MESH_AXES.

        Raises:
            ValueError: the axes do not multiply to the number of devices.
        """
        rest = self.fsdp * self.expert * self.context * self.tensor
        data = self.data if self.data is not None else max(1, devices // rest)
        if data * rest != devices:
            axes = ", ".join(f"{axis} {getattr(self, axis)}" for axis in dims.MESH_AXES if getattr(self, axis))
            raise ValueError(
                f"the mesh ({axes}) needs {data * rest} devices, but there are {devices}: "
                f"change mesh.* or, on a CPU, --devices {data * rest}"
            )
        return (data, self.fsdp, self.expert, self.context, self.tensor)


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """The mesh over `devices` (default: all)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        config.sizes(len(devices)),
        dims.MESH_AXES,
        axis_types=(AxisType.Explicit,) * len(dims.MESH_AXES),
        devices=devices,
    )


def batch_rows(mesh: Mesh) -> int:
    """Number of pieces that batch rows are cut into."""
    return math.prod(mesh.shape[axis] for axis in dims.BATCH_AXES)


def bytes_per_device(tree: Any) -> int:
    """Bytes that the device with most of them holds of the arrays in `tree`."""
    held: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values(), default=0)


def put(batch: Any, mesh: Mesh) -> Any:
    """A batch on the mesh from its host arrays; the letters in each field's name are its layout.

    Every process passes its own slice of the rows.
    """
    if batch is None:
        return None

    def place(name: str, value: Any) -> Any:
        if dataclasses.is_dataclass(value) or value is None:
            return put(value, mesh)
        spec = dims.act_spec(name.rpartition("_")[2])
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.asarray(value))

    return type(batch)(**{name: place(name, value) for name, value in vars(batch).items()})
