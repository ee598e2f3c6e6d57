"""Several processes that run one program: how they find each other, and what only the first of them does."""

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from gptjax.choices import check_numbers
from gptjax.run.progress import mute
from gptjax.run.record import first_line

_MESSAGE_BYTES = 2048
_LOOPBACK = re.compile(r"(localhost|127\.[\d.]+|\[::1\]):\d+")


@dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """Where the processes of a run meet; all None: what Cloud TPU, GKE, SLURM or Open MPI say, else alone.

    coordinator: HOST:PORT of the first process, the same for all.  count: processes in all; 1: alone, whatever the
    environment says.  index: of this process, from 0.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "hosts", at_least_1=("count",))
        given = [name for name in ("coordinator", "count", "index") if getattr(self, name) is not None]
        if self.count == 1 or not given:
            return
        missing = [f"--hosts.{name}" for name in ("coordinator", "count", "index") if name not in given]
        if missing:
            raise ValueError(f"hosts.{given[0]} is given without {' and '.join(missing)}: give all three, or none")
        assert self.coordinator is not None
        assert self.count is not None
        assert self.index is not None
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"hosts.index must lie in 0..{self.count - 1} (hosts.count {self.count}), got {self.index}"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"hosts.coordinator must be HOST:PORT, got {self.coordinator!r}")


def join(config: HostsConfig) -> None:
    """Meet the other processes of the run, before JAX's first use; returns at once when there are none.

    A process that is alone opens no port, and a coordinator on a loopback address listens there only, not on all
    interfaces as JAX would have it.

    Raises:
        ConnectionError: the processes did not meet; they may if all are started again.
    """
    if config.count == 1:
        return
    if config.coordinator is None:
        _join_found()
    else:
        try:
            jax.distributed.initialize(
                config.coordinator,
                config.count,
                config.index,
                cluster_detection_method="deactivate",
                coordinator_bind_address=config.coordinator if _LOOPBACK.fullmatch(config.coordinator) else None,
            )
        except RuntimeError as error:
            raise ConnectionError(
                f"process {config.index} of {config.count} did not meet the others at hosts.coordinator "
                f"{config.coordinator}: {first_line(error)}"
            ) from error
    if jax.distributed.is_initialized() and not is_first():
        mute()


def is_first() -> bool:
    """Whether this process writes what a run leaves behind."""
    return jax.process_index() == 0


def on_first(act: Callable[[], object]) -> None:
    """Do something on the first process while the others wait for it.

    Raises:
        ValueError: on every process, if it was raised on the first.
    """
    message = ""
    if is_first():
        try:
            act()
        except ValueError as error:
            if jax.process_count() == 1:
                raise
            message = str(error) or type(error).__name__
    if jax.process_count() > 1 and (told := _from_first(message)):
        raise ValueError(told)


def first_says(found: bool) -> bool:
    """What the first process found, so that all of them go the same way."""
    return found if jax.process_count() == 1 else bool(_from_first("yes" if found else ""))


def from_first(values: np.ndarray) -> np.ndarray:
    """What the first process has in the place of what each one found; of one shape everywhere."""
    return values if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(values))


def check_same(what: str, value: str) -> None:
    """Raise ValueError on every process if `value` is not the same on all of them."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    others = [index for index, found in enumerate(digests) if (found != digests[0]).any()]
    if others:
        raise ValueError(f"{what} of process {others[0]} differs from that of process 0: start all with the same")


def check_shared(folder: Path, seconds: float = 10.0) -> None:
    """Raise ValueError on every process if one of them does not see what the first writes into `folder`.

    Args:
        folder: on a file system that all are meant to share; made when absent.
        seconds: how long a network file system may take to show a new file.
    """
    if jax.process_count() == 1:
        return
    name = _from_first(f".shared-{secrets.token_hex(8)}")
    on_first(lambda: (folder.mkdir(parents=True, exist_ok=True), (folder / name).touch()))
    deadline = time.monotonic() + seconds
    while not (seen := (folder / name).exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = np.flatnonzero(~np.asarray(multihost_utils.process_allgather(np.array(seen))))
    on_first(lambda: (folder / name).unlink())
    if len(blind):
        raise ValueError(
            f"process {blind[0]} does not see what process 0 writes into {folder}: choose a --workdir on a file system "
            "that all hosts share"
        )


def _join_found() -> None:
    """Meet where the environment says; stay alone if it says nothing."""
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise
    except RuntimeError as error:
        raise ConnectionError(
            f"the processes that the environment names did not meet: {first_line(error)}; give --hosts.coordinator, "
            "--hosts.count and --hosts.index, or --hosts.count 1 to be alone"
        ) from error


def _from_first(text: str) -> str:
    """The first process's text, cut to what fits."""
    raw = text.encode()[:_MESSAGE_BYTES]
    sent = np.frombuffer(raw.ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent))).rstrip(b"\0").decode(errors="replace")
