"""Arrays in the pinned memory of the hosts, and back on the devices; inside jit and outside."""

from typing import Any

import jax


def on_host(tree: Any) -> Any:
    """The arrays in their layout, in the pinned memory of the host of each device; scalars stay on the devices."""
    return jax.tree.map(lambda x: x if x.ndim == 0 else jax.device_put(x, jax.memory.Space.Host), tree)


def on_device(tree: Any, *, after: jax.Array | None = None) -> Any:
    """The arrays in their layout, in the devices' memory.

    Args:
        tree: arrays in either memory.
        after: inside jit, what must be known before an array sets out from its host.
    """

    def moved(x: jax.Array) -> jax.Array:
        if jax.typeof(x).memory_space == jax.memory.Space.Device:
            return x
        if after is not None:
            x, _ = jax.lax.optimization_barrier((x, after))
        return jax.device_put(x, jax.memory.Space.Device)

    return jax.tree.map(moved, tree)


def check_pinned_host(option: str, instead: str) -> None:
    """Raise ValueError, naming the option that wants it, if the devices' hosts have no pinned memory for it."""
    device = jax.devices()[0]
    kinds = sorted({memory.kind for memory in device.addressable_memories()})
    if "pinned_host" not in kinds:
        raise ValueError(
            f"{option} needs pinned host memory, which {device.device_kind} lacks (it has: {', '.join(kinds)}): "
            f"{instead}"
        )
