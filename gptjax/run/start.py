"""Starting JAX: simulated devices, memory of the CPU, the compilation cache, quiet logs, other processes of a run."""

import ctypes
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line imports this file before it wants JAX
    from gptjax.run.hosts import HostsConfig

_ACCELERATORS = ("jax_plugins", "libtpu")  # packages that bring a GPU or a TPU to JAX


def start_jax(devices: int | None = None, hosts: "HostsConfig | None" = None) -> None:
    """Configure JAX before its first use.

    Args:
        devices: simulate this many CPU devices (None: whatever the machine has).
        hosts: where to meet the other processes of the run (None: this command runs in one).

    Raises:
        ConnectionError: the processes did not meet.
    """
    if devices is not None or os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(find_spec, _ACCELERATORS)):
        _keep_freed_memory()  # before NumPy starts threads, which have an arena each from then on

    import jax

    if devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gptjax" / "xla"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax prints the trace of an error that it raises again
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # orbax leaves the errors of failed reads to it
    if hosts is not None:
        from gptjax.run.hosts import join

        join(hosts)


def _keep_freed_memory() -> None:
    """Let glibc keep what XLA frees after each step of a program on the CPU, for the next step.

    By default it gives blocks over 32 MB back to the system at once and maps them anew, and the kernel then clears
    every page in every step: a third of the time of a small model. See mallopt(3); other C libraries lack it.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(arena_max, 1)  # the arenas of threads hold 64 MB at most
