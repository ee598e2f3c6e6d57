"""A model as the steps know it: records of pure functions, and what they pass round."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from gptjax.types import Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of the positions seen so far: for each layer one array float[B, K, S, H].

    One array of all layers would be copied layer by layer at every token, and with S before K each product would
    transpose what it reads.
    """

    k_BKSH: Any
    v_BKSH: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RouterSums:
    """What the routers of a mixture of experts add to a loss, summed over rows, so that microbatches add up.

    loss: f32[], balance and z times their coefficients.  balance, z: f32[], see gptjax.nn.experts.router_losses.
    These three are means over layers.
    dropped, choices: i32[], choices of real tokens that found no room, and all of them, over all layers.
    """

    loss: Any
    balance: Any
    z: Any
    dropped: Any
    choices: Any


@dataclass(frozen=True)
class Ratio:
    """How a parameter compares with the same one of muP's base model.

    width: how many times as many inputs it sees.  gradient: how many times as small its gradient is.
    """

    width: float
    gradient: float


@dataclass(frozen=True, kw_only=True)
class Model:
    """A language model as the steps know it: pure functions, and two trees shaped like its parameters.

    init(key) -> params
    hidden(params, frozen, tokens_BT, segments_BT, positions_BT, *, causal=True, key=None) -> (h_BTD, RouterSums, or
    None without experts); a key means dropout
    unembed(params, frozen, h_BTD, *, decoding=False) -> logits_BTV, at least float32; decoding: T is one position
    prefill(params, frozen, tokens_BT, segments_BT, positions_BT, *, slots) -> (cache, h_BTD)
    decode(params, frozen, cache, token_BT, segments_BS, positions_BT, index) -> (cache, h_BTD), T = 1
    gather(params) -> params gathered over `fsdp`, for many decoding steps, and in the compute dtype but for norms and
    routers, which compute in their own
    gather_unembedding(params) -> params for `unembed`, rounded to the compute dtype, gathered over `fsdp`, but in their
    own dtype: over the pieces of a loss their gradient adds up in it, and crosses the network once
    roles: matrix, bias, norm or embedding for each parameter.  letters: its dimensions (see gptjax.dims).
    ratios: a Ratio for each parameter under muP, else None.
    """

    init: Callable[..., Params]
    hidden: Callable[..., tuple[jax.Array, RouterSums | None]]
    unembed: Callable[..., jax.Array]
    prefill: Callable[..., Any]
    decode: Callable[..., Any]
    gather: Callable[[Params], Params]
    gather_unembedding: Callable[[Params], Params] = lambda params: params
    roles: Params
    letters: Params
    ratios: Params = None


@dataclass(frozen=True, kw_only=True)
class ScalarModel:
    """A model with one number per position: the reward model and the value model.

    init(key) -> params
    values(params, frozen, tokens_BT, segments_BT, positions_BT) -> (f32[B, T], RouterSums or None); never with dropout
    """

    init: Callable[..., Params]
    values: Callable[..., tuple[jax.Array, RouterSums | None]]
    roles: Params
    letters: Params
    ratios: Params = None


@dataclass(frozen=True, kw_only=True)
class ValueHead:
    """One number per position from another model's hidden states: a value model that shares the policy's trunk.

    init(key) -> params
    values(params, h_BTD) -> f32[B, T]
    """

    init: Callable[..., Params]
    values: Callable[..., jax.Array]
    roles: Params
    letters: Params
    ratios: Params = None
