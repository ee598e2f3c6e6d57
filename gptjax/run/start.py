"""Starting JAX: simulated devices, the compilation cache, quiet logs, the other processes of a run."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line imports this file before it wants JAX
    from gptjax.run.hosts import HostsConfig


def start_jax(devices: int | None = None, hosts: "HostsConfig | None" = None) -> None:
    """Configure JAX before its first use.

    Args:
        devices: simulate this many CPU devices (None: whatever the machine has).
        hosts: where to meet the other processes of the run (None: this command runs in one).

    Raises:
        ConnectionError: the processes did not meet.
    """
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
