"""The reference policy: where its parameters lie, in which form, and how a step gets at them.

It is needed once per rollout, not once per epoch, because a rollout carries its log-probabilities.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from gptjax.memory import check_pinned_host, on_device, on_host
from gptjax.model_types import Model
from gptjax.types import Params

Holding = Literal["copy", "bfloat16", "host"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class UpperLayers:
    """What is left of a reference whose lowest layers and embeddings are the policy's, which never change.

    leaves: arrays by path; layers are the upper ones of the stack.
    """

    leaves: dict[str, jax.Array]


def held(params: Params, how: Holding) -> Params:
    """The parameters as they are kept between rollouts; never the same buffers.

    Args:
        params: on the mesh.
        how: copy (same dtype), bfloat16 (half the bytes of float32, same logits to about 3 digits), or host (pinned
            host memory; they travel to the device for each rollout).

    Raises:
        ValueError: the devices have no pinned host memory.
    """
    if how == "copy":
        return jax.tree.map(jnp.copy, params)
    if how == "bfloat16":
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    check_pinned_host("task.reference 'host'", "choose 'copy' or 'bfloat16'")
    return on_host(params)


def upper_layers(params: Params, policy: Model, frozen_layers: int) -> UpperLayers:
    """The part of the reference that a policy with so many frozen layers does not share.

    Raises:
        ValueError: the model has fewer layers than that.
    """
    leaves = {}

    def keep(path, x, role, letter):
        if letter.startswith("L"):
            if frozen_layers >= x.shape[0]:
                raise ValueError(f"task.frozen_layers {frozen_layers} leaves none of the {x.shape[0]} layers to train")
            leaves[jax.tree_util.keystr(path)] = x[frozen_layers:]
        elif role != "embedding":
            leaves[jax.tree_util.keystr(path)] = x

    jax.tree_util.tree_map_with_path(keep, params, policy.roles, policy.letters)
    return UpperLayers(leaves=leaves)


def reference_params(reference: Params | UpperLayers, policy_params: Params) -> Params:
    """The reference's parameters on the device, whole, whichever way they are held.

    Args:
        reference: as `held` or `upper_layers` gave it, or `held(upper_layers(...))`.
        policy_params: the policy's, for the layers that both share.
    """
    reference = on_device(reference)
    if not isinstance(reference, UpperLayers):
        return reference

    def joined(path, own):
        upper = reference.leaves.get(jax.tree_util.keystr(path))
        if upper is None or upper.shape == own.shape:
            return own if upper is None else upper.astype(own.dtype)
        return jnp.concatenate([own[: own.shape[0] - upper.shape[0]], upper.astype(own.dtype)])

    return jax.tree_util.tree_map_with_path(joined, policy_params)


def with_frozen_layers(
    optimizer: optax.GradientTransformation, policy: Model, frozen_layers: int
) -> optax.GradientTransformation:
    """The optimizer of {"policy", "value"} with the policy's lowest layers and embeddings left as they are."""

    def zeroed(updates: Params, params: Any = None) -> Params:
        del params

        def own(x, role, letter):
            if letter.startswith("L"):
                return x.at[:frozen_layers].set(0.0)
            return jnp.zeros_like(x) if role == "embedding" else x

        return updates | {"policy": jax.tree.map(own, updates["policy"], policy.roles, policy.letters)}

    freeze = optax.stateless(zeroed)
    return optax.chain(freeze, optimizer, freeze)  # before: out of the norm that is clipped; after: no weight decay
