"""PPO, RLOO and DPO as they are shipped must reach the known optimum of the tabular world; with a bug they must not.

    python tests/train/tabular.py        # ten seeds of each, three of each mutant: prints the tables in a few minutes

An algorithm is one function (key, prompts) -> table of logits in ALGORITHMS; a mutant is a context in
tabular_mutants.MUTANTS that makes one line of it wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tabular_world import (
    BEST,
    BEST_KL,
    BEST_REWARD,
    BETA,
    END,
    FIRST,
    LONGEST,
    Figures,
    accepted,
    figures,
    frozen_models,
    preferred_gap,
    preferred_pairs,
    prompts,
    scalar_tables,
    table_model,
)

from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.train import dpo as dpo_module
from gptjax.train import group_rollout as group_module
from gptjax.train import grpo as grpo_module
from gptjax.train import rollout as rollout_module
from gptjax.train.dpo import DpoConfig
from gptjax.train.grpo import GrpoConfig, RlooLoss
from gptjax.train.ppo import initial_extra, ppo_step
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.update import initial_state
from gptjax.types import PpoBatch, PreferenceBatch, PromptBatch, TrainState

ITERATIONS, DPO_STEPS = 120, 300
PPO_ROWS, RLOO_ROWS = 256, 32  # prompts of a rollout
CONFIG = PpoConfig(
    minibatches=4, epochs=4, response_tokens=LONGEST, kl_coefficient=BETA, discount=1.0, trace=0.95,
    clip=0.2, missing_end_penalty=0.0,
)  # fmt: skip
RLOO = GrpoConfig(
    group_size=8, minibatches=4, epochs=1, response_tokens=LONGEST, kl_coefficient=BETA,
    missing_end_penalty=0.0, loss=RlooLoss(),
)  # fmt: skip
DPO = DpoConfig(beta=1.0)
POLICY = OptimizerConfig(peak_lr=0.05, schedule="linear", final_fraction=0.0, b2=0.999, eps=1e-5, clip_norm=None)
VALUE = replace(POLICY, peak_lr=0.1)


def adam(steps: int) -> optax.GradientTransformation:
    """Policy and value each with their own rate, as in the PPO task."""
    model, scalar = table_model(), scalar_tables()
    roles, letters = {"policy": model.roles, "value": scalar.roles}, {"policy": model.letters, "value": scalar.letters}
    own = {"policy": optimizer(POLICY, steps, roles, letters), "value": optimizer(VALUE, steps, roles, letters)}
    return optax.partition(own, {"policy": {"table": "policy"}, "value": {"value": "value"}})


def policy_adam(steps: int) -> optax.GradientTransformation:
    """For the algorithms without a critic."""
    return optimizer(POLICY, steps, table_model().roles, table_model().letters)


def first_state(key: jax.Array, config: PpoConfig, tx: optax.GradientTransformation) -> TrainState:
    params = {"policy": table_model().init(key), "value": scalar_tables().init(key)}
    return initial_state(params, tx, key, **initial_extra(config, params["policy"]))


def ppo(key: jax.Array, batch: PpoBatch) -> jax.Array:
    """A whole PPO run: the table of logits that the policy ends with."""
    model, scalar, tx = table_model(), scalar_tables(), adam(ITERATIONS * CONFIG.updates)
    about = {"policy": model, "scalar": scalar, "config": CONFIG}
    collect, step = partial(rollout_module.collect, **about, end_id=END), partial(ppo_step, **about, optimizer=tx)
    state = _iterated(first_state(key, CONFIG, tx), collect, step, batch, CONFIG.updates)
    return state.params["policy"]["table"]


def rloo(key: jax.Array, batch: PromptBatch) -> jax.Array:
    """A whole RLOO run: the table of logits that the policy ends with."""
    model, tx = table_model(), policy_adam(ITERATIONS * RLOO.updates)
    collect = partial(group_module.collect_groups, policy=model, scalar=scalar_tables(), config=RLOO, end_id=END)
    step = partial(grpo_module.grpo_step, policy=model, optimizer=tx, config=RLOO)
    return _iterated(initial_state(model.init(key), tx, key), collect, step, batch, RLOO.updates).params["table"]


def _iterated(state: TrainState, collect: Any, step: Any, batch: Any, updates: int) -> TrainState:
    """What the driver does: a rollout, the updates on it, and again."""

    def iteration(state, number):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), number)
        gathered = collect(state, frozen_models(), batch, key)
        state, _ = jax.lax.scan(lambda s, _: (step(s, gathered)[0], None), state, length=updates)
        return state, None

    return jax.lax.scan(iteration, state, jnp.arange(ITERATIONS))[0]


def dpo(key: jax.Array, batch: PreferenceBatch) -> jax.Array:
    """A whole DPO run on all pairs at once: the table of logits that the policy ends with."""
    model, tx = table_model(), policy_adam(DPO_STEPS)
    step = partial(dpo_module.dpo_step, model=model, optimizer=tx, config=DPO)
    state, _ = jax.lax.scan(
        lambda s, _: (step(s, batch)[0], None), initial_state(model.init(key), tx, key), length=DPO_STEPS
    )
    return state.params["table"]


class Algorithm(NamedTuple):
    """A whole run, and the batch that each of its iterations gets."""

    run: Callable[[jax.Array, Any], jax.Array]
    batch: Callable[[], Any]


ALGORITHMS = {
    "PPO": Algorithm(ppo, lambda: prompts(PPO_ROWS)),
    "RLOO": Algorithm(rloo, lambda: prompts(RLOO_ROWS).prompts),
    "DPO": Algorithm(dpo, preferred_pairs),
}


def tables(algorithm: str, seeds: Sequence[int]) -> np.ndarray:
    """f32[seeds, 52, 4], what an algorithm ends with; all seeds in one compiled call."""
    mesh, chosen = make_mesh(MeshConfig(data=1), jax.devices()[:1]), ALGORITHMS[algorithm]
    with jax.set_mesh(mesh):
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        return np.asarray(jax.jit(jax.vmap(chosen.run, in_axes=(0, None)))(keys, put(chosen.batch(), mesh)))


def trained(algorithm: str, seeds: Sequence[int]) -> list[Figures]:
    """What the policies of PPO or RLOO are worth at their end."""
    return [figures(table) for table in tables(algorithm, seeds)]


def dpo_gap() -> float:
    """Largest distance (nats) of a response's log-probability from DPO's closed form; DPO has no seed."""
    return preferred_gap(tables("DPO", [0])[0])


def main() -> None:
    """Print the tables."""
    from tabular_mutants import MUTANTS

    print(f"optimum: E[r] {BEST_REWARD:.4f}, KL {BEST_KL:.4f}, J {BEST:.4f}; J of the reference {FIRST:.4f}\n")
    print(f"{'run':46} {'gap (min..max)':>18} {'E[r]':>8} {'KL':>8}  accepted")

    def line(name: str, found: list[Figures]) -> None:
        gap, passed = [f.gap for f in found], sum(map(accepted, found))
        mean, kl = (np.mean([getattr(f, field) for f in found]) for field in ("reward", "kl"))
        print(
            f"{name:46} {min(gap):8.4f} ..{max(gap):8.4f} {mean:8.4f} {kl:8.4f}  {passed} of {len(found)}", flush=True
        )

    for algorithm in ("PPO", "RLOO"):
        line(algorithm, trained(algorithm, range(10)))
        for name, mutant in MUTANTS[algorithm].items():
            with mutant():
                line(f"  {name}", trained(algorithm, range(3)))
    print(f"\n{'run':46} largest |log p - log p*| (nats)")
    print(f"{'DPO':46} {dpo_gap():.2g}")
    for name, mutant in MUTANTS["DPO"].items():
        with mutant():
            print(f"{'  ' + name:46} {dpo_gap():.2g}", flush=True)


if __name__ == "__main__":
    main()
