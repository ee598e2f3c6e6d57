"""The recipe's pre-training step as a share of what this machine's matrix products reach, measured by turns.

    python experiments/benchmarks/step_share.py

The step is that of experiments/chatgpt_mini.py on random tokens: 16 rows of 128 tokens. Its FLOPs are the analytic
count (recomputation excluded). The peak is one float32 product of 1024 x 1024 matrices. Prints the medians.
Last result: docs/log.md.
"""

import argparse
import runpy
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.model.pure import language_model
from gptjax.optim.optimizer import optimizer
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.run.progress import table
from gptjax.train.lm import lm_step
from gptjax.train.update import initial_state
from gptjax.types import LmBatch

SIDE = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="timed turns of each side")
    args = parser.parse_args()
    experiment = runpy.run_path(str(Path(__file__).parents[1] / "chatgpt_mini.py"))["lm"]()
    batch_size, length = experiment.batch_size, experiment.task.row_tokens
    model = language_model(experiment.model)
    tx = optimizer(experiment.optimizer, experiment.steps, model.roles, model.letters)
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        state = jax.jit(lambda key: initial_state(model.init(key), tx, key))(jax.random.key(0))
        chunks = experiment.task.loss_chunks
        step = jax.jit(partial(lm_step, model=model, optimizer=tx, loss_chunks=chunks), donate_argnums=0)
        product = jax.jit(jnp.matmul)
        side = jax.random.normal(jax.random.key(1), (SIDE, SIDE))
        batch = put(_random_rows(batch_size, length, experiment.model.vocab_size), mesh)
        seconds: dict[str, list[float]] = {"step": [], "product": []}
        for turn in range(args.rounds + 2):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, batch))
            between = time.perf_counter()
            jax.block_until_ready(product(side, side))
            if turn >= 2:  # the first two compile and warm up
                seconds["step"].append(between - began)
                seconds["product"].append(time.perf_counter() - between)
    flops = {
        "step": experiment.model.train_flops_per_token(length) * batch_size * length,
        "product": 2.0 * SIDE**3,
    }
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    speed = {name: flops[name] / median[name] / 1e9 for name in flops}
    rows = [[name, flops[name] / 1e9, median[name], speed[name], speed[name] / speed["product"]] for name in flops]
    table("pre-training step and matrix product", ["what", "GFLOP", "seconds", "GFLOP/s", "share"], rows)


def _random_rows(batch_size: int, length: int, vocab_size: int) -> LmBatch:
    tokens_BT = np.random.default_rng(0).integers(0, vocab_size, (batch_size, length + 1)).astype(np.int32)
    positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), (batch_size, length))
    return LmBatch(
        tokens_BT=tokens_BT[:, :-1],
        targets_BT=tokens_BT[:, 1:],
        segments_BT=np.ones((batch_size, length), np.int32),
        positions_BT=positions_BT,
        weights_BT=np.ones((batch_size, length), np.float32),
    )


if __name__ == "__main__":
    main()
