"""Bugs for the tabular world to catch: contexts in which one line of PPO, RLOO or DPO is wrong."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias
from unittest import mock

import jax
import jax.numpy as jnp
from tabular_world import BETA, END, LONGEST

from gptjax import dims
from gptjax.losses.groups import kl_token_loss
from gptjax.losses.policy import kl_estimates
from gptjax.train import dpo as dpo_module
from gptjax.train import group_rollout as group_module
from gptjax.train import grpo as grpo_module
from gptjax.train import rollout as rollout_module

Context: TypeAlias = Callable[[], Any]


def _patched(name: str, make: Callable[[Any], Any], where: Any = rollout_module) -> Context:
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


_PPO: dict[str, Context] = {
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


@contextmanager
def _kl_as_loss(token_loss: Callable[[jax.Array, Any, jax.Array], jax.Array] | None):
    """RLOO without KL in the reward; `token_loss` (log-probabilities, rows, mask) is added instead, per answer."""
    judged, rloo_sum = group_module.judged_groups, grpo_module._rloo_sum

    def free(*args):
        return judged(*args[:-1], replace(args[-1], kl_coefficient=0.0))

    def mutant(logp_BR, mask_BR, rows, how):
        loss_sum, aux = rloo_sum(logp_BR, mask_BR, rows, how)
        if token_loss is None:
            return loss_sum, aux
        return loss_sum + BETA * jnp.sum(token_loss(logp_BR, rows, mask_BR)), aux

    with mock.patch.object(group_module, "judged_groups", free), mock.patch.object(grpo_module, "_rloo_sum", mutant):
        yield


def _estimate(which: int):
    return lambda logp_BR, rows, mask_BR: kl_estimates(logp_BR, rows.logp_ref_BCR, mask_BR)[which]


def _offered(kind: Any):
    """The forms that GRPO offers as a loss."""
    return lambda logp_BR, rows, mask_BR: kl_token_loss(
        logp_BR, rows.logp_old_BCR, rows.logp_ref_BCR, mask_BR, kind=kind
    )


_RLOO: dict[str, Context] = {
    "no KL": lambda: _kl_as_loss(None),
    "k1 as a loss": lambda: _kl_as_loss(_estimate(0)),
    "k2 as a loss": lambda: _kl_as_loss(_estimate(1)),
    "k3 times the ratio as a loss": lambda: _kl_as_loss(_offered("k3_times_ratio")),
    "k3 as a loss": lambda: _kl_as_loss(_offered("k3_biased")),
}


def _batches(change: Callable[[Any], Any]) -> Context:
    """DPO's step gets another batch than the one it was given."""
    return _patched("dpo_step", lambda f: lambda state, batch, **k: f(state, change(batch), **k), where=dpo_module)


def _configured(**changes: Any) -> Context:
    return _patched(
        "dpo_step", lambda f: lambda *a, config, **k: f(*a, config=replace(config, **changes), **k), dpo_module
    )


def _without_last(batch):
    """The end token of each response is left out (the third token, of a response that did not end)."""
    return replace(batch, lengths_BC=batch.lengths_BC - 1)


_DPO: dict[str, Context] = {
    "reference left out": _batches(lambda batch: replace(batch, logp_ref_BC=jnp.zeros_like(batch.logp_ref_BC))),
    "log-ratios averaged over length": _configured(length_averaged=True),
    "end token left out": _batches(_without_last),
}

MUTANTS = {"PPO": _PPO, "RLOO": _RLOO, "DPO": _DPO}
