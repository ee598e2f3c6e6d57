"""Save, restore, fall back, keep: the only file that knows Orbax.

A checkpoint has two parts: `model` (params, extra), which other runs start from, and `training` (everything else).
"""

import logging
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from gptjax.types import TrainState

log = logging.getLogger(__name__)


class NoReadableCheckpointError(ValueError):
    """The folder has checkpoints, but none of them can be read."""


def split(state: TrainState) -> dict[str, Any]:
    """The two parts of a checkpoint."""
    return {
        "model": {"params": state.params, "extra": state.extra},
        "training": {"step": state.step, "opt_state": state.opt_state, "key": state.key, "frozen": state.frozen},
    }


def joined(parts: dict[str, Any]) -> TrainState:
    """The state of the two parts."""
    return TrainState(**parts["model"], **parts["training"])


class Checkpoints:
    """Checkpoints of one run; saving happens in the background, and a save that fails is raised by the next call."""

    def __init__(self, folder: Path, *, keep: int):
        self.folder = folder = folder.absolute()  # Orbax loads from relative paths and fails to save to them
        folder.mkdir(parents=True, exist_ok=True)
        policies: Any = ocp.training  # its own annotations disagree with each other
        self._checkpointer = policies.Checkpointer(
            folder,
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def steps(self) -> list[int]:
        """Steps that were saved whole, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, state: TrainState, step: int, about: dict[str, Any]) -> None:
        """Begin to write a checkpoint; returns once the arrays are copied, so the state may be donated."""
        if step not in self.steps():
            self._checkpointer.save_checkpointables_async(step, split(state), custom_metadata=about)

    def wait(self) -> None:
        """Block until the save under way is on disk."""
        self._checkpointer.wait()

    def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state that can be read, in the given layout, and what was said about it; None without any.

        Raises:
            NoReadableCheckpointError: there are checkpoints, but none can be read.
        """
        failures = []
        for step in reversed(self.steps()):
            try:
                about = self._checkpointer.metadata(step).custom_metadata
                parts = self._checkpointer.load_checkpointables(step, split(abstract_state))
            except Exception as error:  # Orbax raises whatever the broken file provokes
                failures.append(f"step {step}: {_first_line(error)}")
                log.warning("checkpoint %s cannot be read, trying the one before: %s", step, _first_line(error))
                continue
            return joined(parts), dict(about or {})
        if failures:
            raise NoReadableCheckpointError(
                f"none of the checkpoints in {self.folder} can be read ({'; '.join(failures)}); nothing was deleted: "
                "repair them, or choose another --workdir"
            )
        return None

    def close(self) -> None:
        """Wait for the save under way and release threads."""
        self._checkpointer.close()


def load_state(folder: Path, abstract_state: TrainState, steps: int) -> tuple[TrainState, dict[str, Any]]:
    """The whole state that a finished stage ended with, for a run of `steps` steps that branches off it.

    Returns:
        (state, what was said about it, its seconds set to 0).

    Raises:
        ValueError: no checkpoint there, or one that is as far as the branch is to go.
    """
    if not (folder / "checkpoints").is_dir():
        raise ValueError(f"branch_from: no checkpoint in {folder / 'checkpoints'}: has that stage been trained?")
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    try:
        found = checkpoints.restore(abstract_state)
    finally:
        checkpoints.close()
    if found is None:
        raise ValueError(f"branch_from: no checkpoint in {folder / 'checkpoints'}: has that stage been trained?")
    if int(found[0].step) >= steps:
        raise ValueError(
            f"branch_from: {folder} ended at step {int(found[0].step)}, this run at {steps}: give more steps"
        )
    return found[0], found[1] | {"seconds": 0.0}


def load_model(folder: Path, abstract_model: Any) -> dict[str, Any]:
    """What is asked for of `params` and `extra` in the newest checkpoint of a stage's folder, in the given layout.

    Args:
        folder: the stage's folder (with `checkpoints` in it).
        abstract_model: {"params", "extra"}, or any part of that tree, of jax.ShapeDtypeStruct with shardings.

    Raises:
        ValueError: no checkpoint there, or it lacks an array that was asked for.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, ocp.training.Checkpointer(str((folder / "checkpoints").absolute())) as checkpointer:
        if checkpointer.latest is None:
            raise ValueError(f"no checkpoint in {folder / 'checkpoints'}: has that stage been trained?")
        found = checkpointer.load_checkpointables(checkpointer.latest, {"model": abstract_model})["model"]
    absent = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
        if isinstance(leaf, jax.ShapeDtypeStruct)  # what Orbax leaves in the place of an array that is not there
    ]
    if absent:
        raise ValueError(f"the newest checkpoint in {folder / 'checkpoints'} has no {', '.join(absent[:3])}")
    return found


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
