"""What one of several processes does in test_hosts.py: rows onto meshes and back, and what the first one says."""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from gptjax import dims
from gptjax.data.loader import own_rows
from gptjax.run.hosts import HostsConfig, check_same, check_shared, first_says, from_first, is_first, join, on_first
from gptjax.run.mesh import fetch, host_share, put
from gptjax.types import RewardBatch


def mesh(order, **sizes):
    devices = np.array(jax.devices())[order].reshape([sizes.get(axis, 1) for axis in dims.MESH_AXES])
    return Mesh(devices, dims.MESH_AXES, axis_types=(AxisType.Explicit,) * len(dims.MESH_AXES))


def refused(act) -> str:
    try:
        act()
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was raised")


def main(coordinator: str, index: int, folder: Path) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    join(HostsConfig(coordinator=coordinator, count=2, index=index))
    ids = np.arange(8 * 2 * 4, dtype=np.int32).reshape(8, 2, 4)
    whole = RewardBatch(tokens_BCT=ids, lengths_BC=ids[:, :, 0], ranks_BC=ids[:, :, 1])
    straight, crossed = [0, 1, 2, 3], [0, 2, 1, 3]  # devices 0 and 1 are those of process 0
    for order, sizes, pieces in (
        (straight, {"data": 4}, ((0, 1), (2, 3))),
        (crossed, {"data": 4}, ((0, 2), (1, 3))),
        (straight, {"data": 2, "context": 2}, ((0,), (1,))),
        (crossed, {"fsdp": 2, "context": 2}, ((0,), (0,))),
        (straight, {"context": 4}, ((0,), (0,))),
        (crossed, {"expert": 2, "tensor": 2}, ((0,), (0,))),
    ):
        over = mesh(order, **sizes)
        share = host_share(over)
        assert share.pieces == pieces[index], (order, sizes, share)
        with jax.set_mesh(over):
            found = fetch(put(own_rows(whole, share), over))
        for name in ("tokens_BCT", "lengths_BC", "ranks_BC"):
            assert getattr(found, name).tolist() == getattr(whole, name).tolist(), (order, sizes, name)

    with jax.set_mesh(mesh(straight, data=4)):  # as the driver's stages do
        assert first_says(is_first()) is True
        assert first_says(not is_first()) is False

        def fail() -> None:
            raise ValueError("the tokenizer – broken")

        assert refused(lambda: on_first(fail)) == "the tokenizer – broken"
        assert from_first(np.arange(3.0) + index).tolist() == [0.0, 1.0, 2.0]
        check_same("the data", "equal")
        assert refused(lambda: check_same("the data", str(index))).startswith("the data of process 1 differs")
    check_shared(folder / "shared")
    assert list((folder / "shared").iterdir()) == []
    own = folder / f"disk{index}"
    own.mkdir()
    assert refused(lambda: check_shared(own, seconds=0.3)).startswith("process 1 does not see what process 0 writes")
    print("all well")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
