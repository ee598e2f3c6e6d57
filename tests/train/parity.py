"""The parity matrix: every objective on every layout gives one device's parameters after three AdamW updates.

    python tests/train/parity.py                                        # all of it: more than an hour on two cores
    python tests/train/parity.py --objectives lm ppo --layouts "fsdp 2" "moe, expert 2" --dtype float32

Prints, for each layout (rows) and objective (columns), the largest difference of any parameter from those of one
device, and the share of one device's state that each device holds, which must be what the letters of the parameters
say. PPO and GRPO sample their rollout on the mesh.
"""

import argparse
import itertools
import json
import math
import os
import sys
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from parity_tasks import SIZES, TASKS, VARIANTS, state_of

from gptjax.data.candidates import packed
from gptjax.run.mesh import MeshConfig, bytes_per_device, make_mesh, put
from gptjax.types import RatingBatch, RewardBatch

TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
AXES = ("data", "fsdp", "expert", "context", "tensor")
SPREAD_OVER = {"D": "fsdp", "N": "tensor", "K": "tensor", "F": "tensor", "V": "tensor", "E": "expert"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A mesh, what the model is (on one device too), and how it is computed here (not on one device)."""

    mesh: dict[str, int] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    microbatches: int = 1

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each axis."""
        return dict.fromkeys(AXES, 1) | self.mesh


MOE = {"experts": 4, "balance_coefficient": 0.1, "router_z_coefficient": 0.01}
EVERYTHING_FITS = {"capacity_factor": 2.0}  # experts / experts_per_token: all-to-all, and nothing is dropped
WINDOW = {"window": 3, "soft_cap": 5.0}
RING = {"context_attention": "ring"}
SPREAD = {"spread_norms": True, "remat": "matmuls"}


def _layouts() -> dict[str, Layout]:
    alone = {f"{axis} 2": Layout(mesh={axis: 2}) for axis in AXES}
    pairs = {f"{a} 2 {b} 2": Layout(mesh={a: 2, b: 2}) for a, b in itertools.combinations(AXES, 2)}
    return alone | pairs | {
        "context 4, ring, window": Layout(mesh={"context": 4}, model=WINDOW, how=RING),
        "fsdp 2 context 2 tensor 2": Layout(mesh={"fsdp": 2, "context": 2, "tensor": 2}),
        "data 2 context 2 tensor 2, ring": Layout(mesh={"data": 2, "context": 2, "tensor": 2}, how=RING),
        "fsdp 2 context 2 tensor 2, window, spread norms": Layout(
            mesh={"fsdp": 2, "context": 2, "tensor": 2}, model=WINDOW, how=SPREAD
        ),
        "int8, fsdp 2 context 2 tensor 2": Layout(
            mesh={"fsdp": 2, "context": 2, "tensor": 2}, model={"matmuls": "int8"}, how=SPREAD
        ),
        "fp8, data 2 fsdp 2 tensor 2": Layout(mesh={"data": 2, "fsdp": 2, "tensor": 2}, model={"matmuls": "fp8"}),
        "2 microbatches, fsdp 2 tensor 2": Layout(mesh={"fsdp": 2, "tensor": 2}, microbatches=2),
        "2 key-value heads, tensor 4": Layout(mesh={"fsdp": 2, "tensor": 4}),
        "moe, expert 2": Layout(mesh={"expert": 2}, model=MOE),
        "moe, expert 4, all-to-all": Layout(mesh={"expert": 4}, model=MOE, how=EVERYTHING_FITS),
        "moe, fsdp 2 expert 2 tensor 2, spread norms": Layout(
            mesh={"fsdp": 2, "expert": 2, "tensor": 2}, model=MOE, how={"spread_norms": True}
        ),
        "moe, all-to-all, ring, 2 microbatches": Layout(
            mesh={"expert": 2, "context": 2, "tensor": 2}, model=MOE, how=EVERYTHING_FITS | RING, microbatches=2
        ),
    }  # fmt: skip


LAYOUTS = _layouts()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """After three updates: parameters, metrics, and what a device holds; `program` is the update's compiled text."""

    params: Any
    metrics: dict[str, float]
    param_bytes: int
    state_bytes: int
    batch_bytes: int
    letters: dict[str, int]
    program: str


def three_updates(objective: str, layout: Layout, dtype: str) -> Outcome:
    """Three updates of an objective on a layout's mesh."""
    switches = layout.model | layout.how | {"dtype": dtype}
    tx, init, step, make_batch, gather = (TASKS | VARIANTS)[objective](switches)
    mesh = make_mesh(MeshConfig(**layout.sizes), jax.devices()[: math.prod(layout.sizes.values())])
    with jax.set_mesh(mesh):
        state = jax.jit(lambda key: state_of(init(key), tx))(jax.random.key(0))
        batch = make_batch(np.random.default_rng(0))
        if isinstance(batch, RewardBatch | RatingBatch):  # the same rows for every layout, experts are balanced by row
            batch = packed(batch, 16, multiple=8, microbatches=2)
        batch = put(batch, mesh)
        batch_bytes = bytes_per_device(batch)
        if gather is not None:
            batch = jax.jit(gather)(state, batch)
        held = bytes_per_device(state.params), bytes_per_device((state.params, state.opt_state))
        update = jax.jit(partial(step, microbatches=layout.microbatches)).lower(state, batch).compile()
        metrics = {}
        for _ in range(3):
            state, metrics = update(state, batch)
        return Outcome(
            params=jax.tree.map(np.asarray, state.params),
            metrics=jax.tree.map(float, metrics),
            param_bytes=held[0],
            state_bytes=held[1],
            batch_bytes=batch_bytes,
            letters=_elements(state.params, layout),
            program=update.as_text(),
        )


@cache
def alone(objective: str, model: str, dtype: str) -> Outcome:
    """On one device; `model` is the JSON of what the model is."""
    return three_updates(objective, Layout(model=json.loads(model)), dtype)


def _elements(params: Any, layout: Layout) -> dict[str, int]:
    """Elements of each parameter that a device should hold, worked out from the letters in its name alone."""
    sizes = layout.sizes
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        pieces = 1
        letters = name.rpartition("_")[2]
        for letter in letters:
            axis = SPREAD_OVER.get(letter)
            few = letter == "K" and SIZES["kv_heads"] < sizes["tensor"]  # then every device holds all of them
            pieces *= sizes[axis] if axis and not few else 1
        if "D" in letters and "E" not in letters:  # what experts share
            pieces *= sizes["expert"]
        found[name] = leaf.size // pieces
    return found


def difference(objective: str, layout: Layout, dtype: str) -> tuple[float, float]:
    """(largest difference of a parameter from one device's, share of one device's state that a device holds).

    Raises:
        AssertionError: a device holds other bytes than it should, a metric differs, or experts do not travel.
    """
    found, expected = three_updates(objective, layout, dtype), alone(objective, json.dumps(layout.model), dtype)
    width = np.dtype(dtype).itemsize
    assert found.param_bytes == width * sum(found.letters.values()), (found.param_bytes, found.letters)
    assert found.state_bytes <= 3 * found.param_bytes + 64, "moments are not laid out as their parameters"
    sizes = layout.sizes
    rows = sizes["data"] * sizes["fsdp"] * sizes["expert"]
    assert found.batch_bytes <= expected.batch_bytes / rows, "the batch's rows are not spread"
    if layout.how.get("capacity_factor") and sizes["expert"] > 1:
        assert "all-to-all" in found.program, "no all-to-all in the program"
    for name, value in expected.metrics.items():
        close = math.isclose(found.metrics[name], value, rel_tol=1e-9, abs_tol=1e-9)
        assert close or dtype == "float32", f"{name}: {found.metrics[name]} and {value}"
    distances = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), found.params, expected.params)
    return max(jax.tree.leaves(distances)), found.state_bytes / expected.state_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=list(TASKS), choices=[*TASKS, *VARIANTS], metavar="NAME")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS, metavar="NAME")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float64")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", args.dtype == "float64")
    wide = max(map(len, args.layouts))
    if not args.json:
        print(f"{'':{wide}}" + "".join(f"{name:>16}" for name in args.objectives))
    results: dict[str, dict[str, Any]] = {}
    for layout in args.layouts:
        for objective in args.objectives:
            print(f"{layout}: {objective}", file=sys.stderr)
            far, share = difference(objective, LAYOUTS[layout], args.dtype)
            results.setdefault(layout, {})[objective] = {"difference": far, "share": share}
        if not args.json:
            cells = (f"{cell['difference']:.0e} ({cell['share']:.2f})" for cell in results[layout].values())
            print(f"{layout:{wide}}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    if args.json:
        print(json.dumps(results))
    far = max(cell["difference"] for row in results.values() for cell in row.values())
    if far > TOLERANCE[args.dtype]:
        print(f"a parameter differs by {far:.1e}, more than {TOLERANCE[args.dtype]:.0e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
