"""What safety costs: a step while a save is under way, the fingerprints of a save, the checks of every step.

    python experiments/benchmarks/reliability_cost.py [--width 512] [--rounds 40] [--json]

One language-model step on one device, in interleaved rounds, so that a busy machine slows all variants alike; medians.

| figure | bar |
|---|---|
| step while a background save is under way / step | at most 1.5 |
| fingerprints of a state / writing it | at most 20 % |
| checks of a step (choice of old or new state, watchdog, loss watch, signals) / step | at most 3 % |
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.faults import LossWatch
from gptjax.run.goodput import Goodput
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.run.progress import table
from gptjax.run.stop import Stop
from gptjax.run.watchdog import Watchdog
from gptjax.train.lm import lm_step
from gptjax.train.update import initial_state
from gptjax.tree import fingerprints
from gptjax.types import LmBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 256), ("layers", 4), ("rows", 16), ("tokens", 128), ("rounds", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        figures = measured(args)
    if args.json:
        print(json.dumps(figures))
        return
    rows = [[name, value] for name, value in figures.items()]
    table("What safety costs (medians)", ("figure", "value"), rows)


def measured(args: argparse.Namespace) -> dict[str, float]:
    """Medians over interleaved rounds: plain step, step without the choice, step during a save, save, fingerprints."""
    step, bare, state, batch = steps(args)
    times: dict[str, list[float]] = {name: [] for name in ("step", "bare", "saving", "host", "save", "fingerprints")}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=1)
        fingerprints(state)
        for number in range(1, args.rounds + 1):
            for name, function in (("bare", bare), ("step", step)):
                times[name].append(seconds(lambda function=function: function(state, batch)))
            times["host"].append(host_checks())
            times["fingerprints"].append(seconds(lambda: fingerprints(state)))
            began = time.perf_counter()
            checkpoints.save(state, number, {})
            times["saving"].append(seconds(lambda: step(state, batch)))
            checkpoints.wait()
            times["save"].append(time.perf_counter() - began)
        checkpoints.close()
    median = {name: statistics.median(values[2:] or values) for name, values in times.items()}
    writing = median["save"] - median["fingerprints"]
    choice = statistics.median([a - b for a, b in zip(times["step"], times["bare"], strict=True)][2:])
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
        "step_seconds": median["step"],
        "step_while_saving_ratio": median["saving"] / median["step"],
        "save_seconds": median["save"],
        "fingerprints_of_a_save": median["fingerprints"] / writing,
        "checks_of_a_step": (max(choice, 0.0) + median["host"]) / median["step"],
        "choice_seconds": choice,
        "host_checks_seconds": median["host"],
    }


def steps(args: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """(step, the same without the choice between old and new state, state, batch); nothing is donated."""
    config = ModelConfig(
        vocab_size=4096, layers=args.layers, width=args.width, heads=4, hidden=4 * args.width, max_length=args.tokens
    )
    model = language_model(config)
    tx = optimizer(OptimizerConfig(peak_lr=1e-3), 100, model.roles, model.letters)
    state = jax.jit(lambda key: initial_state(model.init(key), tx, key))(jax.random.key(0))
    rng, shape = np.random.default_rng(0), (args.rows, args.tokens)
    ids = rng.integers(0, 4096, shape, np.int32)
    rows = LmBatch(
        tokens_BT=ids,
        targets_BT=np.roll(ids, -1, 1),
        segments_BT=np.ones(shape, np.int32),
        positions_BT=np.broadcast_to(np.arange(args.tokens, dtype=np.int32), shape).copy(),
        weights_BT=np.ones(shape, np.float32),
    )
    batch = put(rows, jax.sharding.get_mesh())
    step = partial(lm_step, model=model, optimizer=tx)
    guarded = jax.jit(step).lower(state, batch).compile()
    with mock.patch("gptjax.train.update.chosen", lambda condition, new, old: new):
        bare = jax.jit(lambda state, batch: step(state, batch)).lower(state, batch).compile()
    return guarded, bare, state, batch


def host_checks() -> float:
    """Seconds that the host spends on one step's checks."""
    watch, dog, goodput, stop = LossWatch(5, 6.0), Watchdog(None), Goodput(), Stop()
    losses = np.random.default_rng(0).normal(2.0, 0.1, 128).tolist()
    for number, loss in enumerate(losses):
        watch.see(number, loss, skipped=False)
    began = time.perf_counter()
    for number in range(20):
        dog.heard()
        watch.see(200 + number, 2.0, skipped=False)
        stop.asked(number)
        with goodput("data"), stop.interruptible():
            pass
    spent = (time.perf_counter() - began) / 20
    dog.rest()
    return spent


def seconds(function: Any) -> float:
    """How long a call takes until its result is there."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
