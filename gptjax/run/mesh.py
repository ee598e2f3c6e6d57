"""The mesh of a run: five named axes that always exist, explicit sharding, and how arrays get onto them and back."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, reshard

from gptjax import dims
from gptjax.choices import check_numbers
from gptjax.data.loader import EVERYTHING, Share


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
        check_numbers(self, "mesh", at_least_1=dims.MESH_AXES)

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
    slices = count_slices(devices)
    if slices == 1:
        return Mesh(_arranged(mesh_utils.create_device_mesh, sizes, devices), dims.MESH_AXES, axis_types=kinds)
    if sizes[0] % slices:
        raise ValueError(f"mesh.data {sizes[0]} is not a multiple of the {slices} slices: only `data` may cross them")
    within = (sizes[0] // slices, *sizes[1:])
    across = (slices, *(1 for _ in sizes[1:]))
    arranged = _arranged(partial(mesh_utils.create_hybrid_device_mesh, within), across, devices)
    return Mesh(arranged, dims.MESH_AXES, axis_types=kinds)


def count_slices(devices: list[Any]) -> int:
    """Number of slices that the devices belong to: between them are slow links."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def _arranged(create: Callable[..., np.ndarray], sizes: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """The devices in the mesh's shape, neighbours along each axis being neighbours in the torus.

    A mesh axis has whole directions of the torus where that is possible, and else a part of one: 64 x 4 on a torus of
    16 x 16, where an axis of 4 takes a quarter of a direction.
    """
    try:
        return create(sizes, devices)
    except NotImplementedError:
        return create(sizes, devices, allow_split_physical_axes=True)


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


@lru_cache(maxsize=8)
def host_share(mesh: Mesh) -> Share:
    """The pieces of every batch that this process's devices hold.

    Processes that a `context` or `tensor` axis runs across hold the same ones. A TPU's hosts are squares of chips, so
    the pieces of one host need not be neighbours.
    """
    pieces = batch_rows(mesh)
    rows = NamedSharding(mesh, dims.act_spec("B"))
    indices: Any = rows.addressable_devices_indices_map((pieces,))
    held = {_start(index[0], pieces) for index in indices.values()}
    return EVERYTHING if len(held) == pieces else Share(tuple(sorted(held)), pieces)


def put(batch: Any, mesh: Mesh) -> Any:
    """A batch on the mesh from its host arrays; the letters in each field's name are its layout; scalars have none.

    Every process passes its own rows (`host_share`), in order.
    """
    share = host_share(mesh)

    def place(spec: PartitionSpec, value: Any) -> jax.Array:
        own, sharding = np.asarray(value), NamedSharding(mesh, spec)
        if share == EVERYTHING or not own.ndim:
            return jax.make_array_from_callback(own.shape, sharding, own.__getitem__)
        size = len(own) // len(share.pieces)  # rows of a piece

        def part(index: Any) -> np.ndarray:
            start = share.pieces.index(_start(index[0], size * share.of) // size) * size
            return own[start : start + size][(slice(None), *index[1:])]

        return jax.make_array_from_callback((size * share.of, *own.shape[1:]), sharding, part)

    return with_specs(place, batch)


def with_specs(place: Callable[[PartitionSpec, Any], Any], batch: Any) -> Any:
    """The batch with `place(layout, array)` for each array; the letters in its field's name are its layout."""

    def placed(path: Any, value: Any) -> Any:
        letters = path[-1].name.rpartition("_")[2] if np.ndim(value) else ""
        return place(dims.act_spec(letters), value)

    return jax.tree_util.tree_map_with_path(placed, batch)


def fetch(tree: Any) -> Any:
    """NumPy copies of whole arrays, on every process; all of them must call it."""

    def whole(x: jax.Array) -> np.ndarray:
        return np.asarray(x if x.is_fully_addressable else reshard(x, PartitionSpec()))

    return jax.tree.map(whole, tree)


def _start(piece: slice, size: int) -> int:
    return piece.indices(size)[0]
