"""Every objective's step gives one device's parameters on meshes that use every axis, and bytes really fall."""

import chex
import jax.numpy as jnp
import optax
import pytest
from parity import LAYOUTS, TOLERANCE, difference
from parity_tasks import TASKS, VARIANTS

from gptjax.optim.optimizer import OptimizerConfig, optimizer

MIXED, MOE = "fsdp 2 context 2 tensor 2", "moe, all-to-all, ring, 2 microbatches"
# each objective where every kind of axis is used, and LM on all of them: the whole matrix takes more than an hour, and
# one command prints it (python tests/train/parity.py)
CASES = {("lm", layout) for layout in LAYOUTS}
CASES |= {(objective, MIXED) for objective in TASKS | VARIANTS}
CASES |= {(objective, MOE) for objective in TASKS}
QUICK = {("reward", MIXED), ("grpo given", MIXED), ("lm", "moe, expert 4, all-to-all")}


@pytest.mark.parametrize(
    ("objective", "layout"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in sorted(CASES)],
)
def test_three_updates_on_a_mesh_equal_those_on_one_device(objective, layout, x64):
    if "matmuls" in LAYOUTS[layout].model:
        pytest.importorskip("qwix", reason="quantised products need qwix: pip install -e '.[quant]'")
    far, _ = difference(objective, LAYOUTS[layout], "float64")
    assert far <= TOLERANCE["float64"]


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "layout"), [("lm", MOE), ("reward", MIXED), ("ppo", MIXED)])
def test_float32_updates_on_a_mesh_stay_close(objective, layout):
    far, _ = difference(objective, LAYOUTS[layout], "float32")
    assert far <= TOLERANCE["float32"]


def test_adamw_of_a_run_is_optax_adamw_after_clipping():
    params = {"w": jnp.asarray([3.0, 4.0]), "n": jnp.asarray([1.0])}
    config = OptimizerConfig(peak_lr=0.1, schedule="constant", weight_decay=0.5)
    tx = optimizer(config, 10, {"w": "matrix", "n": "norm"}, {"w": "D", "n": "D"})
    by_hand = optax.adamw(0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.5, mask={"w": True, "n": False})
    grads = {"w": jnp.asarray([30.0, 40.0]), "n": jnp.asarray([0.0])}  # norm 50, clipped to 1
    clipped = {"w": jnp.asarray([0.6, 0.8]), "n": jnp.asarray([0.0])}
    ours, _ = tx.update(grads, tx.init(params), params)
    theirs, _ = by_hand.update(clipped, by_hand.init(params), params)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6)
