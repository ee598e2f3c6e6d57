"""How devices are arranged: axes follow the torus, or a part of one of its directions where they must."""

from dataclasses import dataclass

import numpy as np
import pytest

from gptjax.run.mesh import MeshConfig, make_mesh


@dataclass(frozen=True)
class Chip:
    """What a mesh asks of a TPU device."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    core_on_chip: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def torus(x, y, slices=1):
    return [
        Chip(s * x * y + i * y + j, (i, j, 0), slice_index=s) for s in range(slices) for i in range(x) for j in range(y)
    ]


def steps_apart(mesh, axis):
    """The coordinates that change between neighbours along an axis, over the whole mesh."""
    chips = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0)
    pairs = zip(chips[:-1].flat, chips[1:].flat, strict=True)
    return {sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True)) for one, other in pairs}


@pytest.mark.parametrize("sizes", [{"fsdp": 16}, {"fsdp": 4, "tensor": 4}, {"fsdp": 8, "tensor": 2}])
def test_every_chip_has_its_place_and_tensor_has_neighbours(sizes):
    mesh = make_mesh(MeshConfig(**sizes), torus(4, 4))
    assert {chip.id for chip in mesh.devices.flat} == set(range(16))
    assert all(mesh.shape[axis] == size for axis, size in sizes.items())
    assert "tensor" not in sizes or steps_apart(mesh, "tensor") == {1}


def test_an_axis_that_is_part_of_a_direction_is_arranged_in_every_slice():
    mesh = make_mesh(MeshConfig(data=2, fsdp=8, tensor=2), torus(4, 4, slices=2))
    assert {chip.id for chip in mesh.devices.flat} == set(range(32))
    for number, part in enumerate(mesh.devices):
        assert {chip.slice_index for chip in part.flat} == {number}
    assert steps_apart(mesh, "tensor") == {1}
