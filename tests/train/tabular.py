"""PPO as it is shipped must reach the optimum of the tabular world, and PPO with a bug must not.

    python tests/train/tabular.py        # PPO on ten seeds, each mutant on three: prints the table in about 3 minutes

An algorithm is one function (key, prompts) -> table of logits in ALGORITHMS; a mutant is a context in MUTANTS that
makes one line of it wrong.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

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
    prompts,
    scalar_tables,
    table_model,
)

from gptjax import dims
from gptjax.losses.policy import kl_estimates
from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.train import rollout as rollout_module
from gptjax.train.ppo import initial_extra, ppo_step
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.update import initial_state
from gptjax.types import PpoBatch, TrainState

ITERATIONS = 120
CONFIG = PpoConfig(
    prompts=256, minibatches=4, epochs=4, response_tokens=LONGEST, kl_coefficient=BETA, discount=1.0, trace=0.95,
    clip=0.2, missing_end_penalty=0.0,
)  # fmt: skip
POLICY = OptimizerConfig(peak_lr=0.05, schedule="linear", final_fraction=0.0, b2=0.999, eps=1e-5, clip_norm=None)
VALUE = replace(POLICY, peak_lr=0.1)


def adam(steps: int) -> optax.GradientTransformation:
    """Policy and value each with their own rate, as in the PPO task."""
    model, scalar = table_model(), scalar_tables()
    roles, letters = {"policy": model.roles, "value": scalar.roles}, {"policy": model.letters, "value": scalar.letters}
    own = {"policy": optimizer(POLICY, steps, roles, letters), "value": optimizer(VALUE, steps, roles, letters)}
    return optax.partition(own, {"policy": {"table": "policy"}, "value": {"value": "value"}})


def first_state(key: jax.Array, config: PpoConfig, tx: optax.GradientTransformation) -> TrainState:
    params = {"policy": table_model().init(key), "value": scalar_tables().init(key)}
    return initial_state(params, tx, key, **initial_extra(config, params["policy"]))


def ppo(key: jax.Array, batch: PpoBatch) -> jax.Array:
    """A whole PPO run: the table of logits that the policy ends with."""
    model, scalar, tx = table_model(), scalar_tables(), adam(ITERATIONS * CONFIG.updates)
    step = partial(ppo_step, policy=model, scalar=scalar, optimizer=tx, config=CONFIG)

    def iteration(state, number):
        gathered = rollout_module.collect(
            state, frozen_models(), batch, jax.random.fold_in(jax.random.wrap_key_data(state.key), number),
            policy=model, scalar=scalar, config=CONFIG, end_id=END,
        )  # fmt: skip
        state, _ = jax.lax.scan(lambda s, _: (step(s, gathered)[0], None), state, length=CONFIG.updates)
        return state, None

    state, _ = jax.lax.scan(iteration, first_state(key, CONFIG, tx), jnp.arange(ITERATIONS))
    return state.params["policy"]["table"]


ALGORITHMS: dict[str, Callable[[jax.Array, PpoBatch], jax.Array]] = {"PPO": ppo}


def trained(algorithm: str, seeds: Sequence[int]) -> list[Figures]:
    """What an algorithm ends with, for each seed; all seeds in one compiled call."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        batch = put(prompts(CONFIG.prompts), mesh)
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        tables = jax.jit(jax.vmap(ALGORITHMS[algorithm], in_axes=(0, None)))(keys, batch)
    return [figures(table) for table in np.asarray(tables)]


def _patched(name: str, make: Callable[[Any], Any], where: Any = rollout_module) -> Callable[[], Any]:
    """A context in which `where.name` is what `make` makes of it."""
    return lambda: mock.patch.object(where, name, make(getattr(where, name)))


def _k3(shaped):
    def mutant(scores_B, logp_BR, ref_BR, mask_BR, *, kl_coefficient):
        k3_BR = kl_estimates(logp_BR, ref_BR, mask_BR)[2]
        return shaped(scores_B, k3_BR, jnp.zeros_like(k3_BR), mask_BR, kl_coefficient=kl_coefficient)

    return mutant


def _early(shaped):
    """The score goes to the token before the last (to the only one if there is no other)."""

    def mutant(scores_B, logp_BR, ref_BR, mask_BR, *, kl_coefficient):
        kl_BR = shaped(jnp.zeros_like(scores_B), logp_BR, ref_BR, mask_BR, kl_coefficient=kl_coefficient)
        place_B1 = jnp.maximum(jnp.sum(mask_BR, axis=1, keepdims=True) - 2, 0)
        return kl_BR + jnp.where(jnp.arange(LONGEST)[None] == place_B1, scores_B[:, None], 0.0)

    return mutant


def _without_end(collect):
    def mutant(*args, **kwargs):
        made = collect(*args, **kwargs)
        tokens_BR = jax.sharding.reshard(made.tokens_BT, dims.act_spec("BS"))[:, -LONGEST:]
        return replace(made, mask_BR=made.mask_BR & (tokens_BR != END))

    return mutant


def _aliased(collect):
    return lambda state, frozen, *args, **kwargs: collect(
        state, frozen | {"reference": state.params["policy"]}, *args, **kwargs
    )


@contextmanager
def _unmasked_gae():
    """The recursion runs on over what follows the end: KL rewards and values of padding."""
    outputs, shaped, gae, raw = rollout_module._old_outputs, rollout_module.kl_shaped_rewards, rollout_module.gae, {}

    def kept(*args):
        logp_BR, raw["values"] = outputs(*args)
        return logp_BR, raw["values"]

    def everywhere(scores_B, logp_BR, ref_BR, mask_BR, *, kl_coefficient):
        score_BR = shaped(scores_B, logp_BR, ref_BR, mask_BR, kl_coefficient=0.0)
        return score_BR - kl_coefficient * (logp_BR - ref_BR)

    def mutant(rewards_BR, values_BR, mask_BR, **coefficients):
        return gae(rewards_BR, raw["values"], jnp.ones_like(mask_BR), **coefficients)

    changes = {"_old_outputs": kept, "kl_shaped_rewards": everywhere, "gae": mutant}
    with mock.patch.multiple(rollout_module, **changes):
        yield


MUTANTS: dict[str, Callable[[], Any]] = {
    "rewards in an int buffer": _patched(
        "kl_shaped_rewards", lambda f: lambda scores_B, *a, **k: f(jnp.trunc(scores_B), *a, **k)
    ),
    "end token masked out": _patched("collect", _without_end),
    "reference aliased to the policy": _patched("collect", _aliased),
    "KL sign flipped": _patched(
        "kl_shaped_rewards", lambda f: lambda *a, kl_coefficient: f(*a, kl_coefficient=-kl_coefficient)
    ),
    "k3 in the reward": _patched("kl_shaped_rewards", _k3),
    "score one token early": _patched("kl_shaped_rewards", _early),
    "GAE ignores the mask": _unmasked_gae,
    "sampled at T = .5, scored at T = 1": _patched(
        "SamplingConfig", lambda f: lambda **k: f(**k | {"temperature": 0.5})
    ),
    "sign of the advantage": _patched(
        "gae", lambda f: lambda *a, **k: tuple(s * x for s, x in zip((-1, 1), f(*a, **k), strict=True))
    ),
}


def mutated(mutant: str, seeds: Sequence[int], algorithm: str = "PPO") -> list[Figures]:
    """What an algorithm ends with when one line of it is wrong."""
    with MUTANTS[mutant]():
        return trained(algorithm, seeds)


def main() -> None:
    """Print the table."""
    print(f"optimum: E[r] {BEST_REWARD:.4f}, KL {BEST_KL:.4f}, J {BEST:.4f}; J of the reference {FIRST:.4f}\n")
    print(f"{'run':40} {'gap (min..max)':>18} {'E[r]':>8} {'KL':>8}  accepted")

    def line(name: str, found: list[Figures]) -> None:
        gap, passed = [f.gap for f in found], sum(map(accepted, found))
        mean, kl = (np.mean([getattr(f, field) for f in found]) for field in ("reward", "kl"))
        print(
            f"{name:40} {min(gap):8.4f} ..{max(gap):8.4f} {mean:8.4f} {kl:8.4f}  {passed} of {len(found)}", flush=True
        )

    for algorithm in ALGORITHMS:
        line(algorithm, trained(algorithm, range(10)))
    for mutant in MUTANTS:
        line(mutant, mutated(mutant, range(3)))


if __name__ == "__main__":
    main()
