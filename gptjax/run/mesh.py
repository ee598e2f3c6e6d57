"""The mesh of a run: five named axes that always exist, explicit sharding, and how a host batch gets onto them."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
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
    """The mesh over `devices` (default: all); of several slices, `data` is what crosses the slow links between them.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or slices would have to share another axis.
    """
    devices = jax.devices() if devices is None else devices
    sizes, kinds = config.sizes(len(devices)), (AxisType.Explicit,) * len(dims.MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(sizes, dims.MESH_AXES, axis_types=kinds, devices=devices)
    if sizes[0] % slices:
        raise ValueError(f"mesh.data {sizes[0]} is not a multiple of the {slices} slices: only `data` may cross them")
    within = (sizes[0] // slices, *sizes[1:])
    across = (slices, *(1 for _ in sizes[1:]))
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, across, devices), dims.MESH_AXES, axis_types=kinds)


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
    """A batch on the mesh from its host arrays; the letters in each field's name are its layout; scalars have none.

    Every process passes its own slice of the rows.
    """
    if batch is None:
        return None

    def place(name: str, value: Any) -> Any:
        if dataclasses.is_dataclass(value) or value is None:
            return put(value, mesh)
        spec = dims.act_spec(name.rpartition("_")[2] if np.ndim(value) else "")
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.asarray(value))

    return type(batch)(**{name: place(name, value) for name, value in vars(batch).items()})
