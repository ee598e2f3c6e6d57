"""A mixture of experts: which experts a token goes to, and the journey there and back over the `expert` axis.

Two ways. Without a capacity nothing is ever dropped: every device of the axis sees the tokens of all of them, sorts out
those that chose its own experts, multiplies them group by group, and the results are summed on the way back. With a
capacity each device sends to each expert at most that many tokens (all-to-all), whatever they chose; what finds no
place is dropped, its residual stream goes on unchanged.

Rows sorted by expert have the letter M; the experts that a token chose have the letter C.
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gptjax import dims

BLOCK_ROWS = 2048  # of one expert, multiplied at once: the reading of its matrices is then a tenth of the time

Activation = Literal["gelu", "relu2", "swiglu"]


class Expert(NamedTuple):
    """The experts' matrices: w_in_EDF, w_gate_EDF (None: not gated), w_out_EFD; D gathered, F spread over `tensor`."""

    w_in_EDF: Any
    w_gate_EDF: Any
    w_out_EFD: Any


def chosen_experts(logits_BTE: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` likeliest experts of each token and how much of each it gets.

    Args:
        logits_BTE: f32[B, T, E], the router's.
        count: experts per token.

    Returns:
        (chosen_BTC, weights_BTC): i32, the likeliest first; f32, which add up to 1 over C.

    Source: Jiang et al. 2024, arXiv:2401.04088, section 2.1.
    """
    top_BTC, chosen_BTC = jax.lax.top_k(logits_BTE, count)
    return chosen_BTC, jax.nn.softmax(top_BTC, axis=-1)


def router_losses(logits_BTE: jax.Array, chosen_BTC: jax.Array, real_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(balance_B, z_B): what each row's routing costs; additive over rows, 0 for a row without tokens.

    balance: E x the sum over experts of (share of the row's choices) x (mean probability): 1 where all experts are
    used alike, E where all tokens choose one. z: mean squared log-sum-exp of the logits.

    Args:
        logits_BTE: f32[B, T, E].
        chosen_BTC: i32[B, T, C].
        real_BT: bool[B, T]; padding counts nowhere.

    Source: Fedus et al. 2022, arXiv:2101.03961, equations 4 to 6; z: Zoph et al. 2022, arXiv:2202.08906, equation 5.
    """
    experts = logits_BTE.shape[-1]
    weight_BT = real_BT.astype(logits_BTE.dtype)
    n_B = jnp.maximum(jnp.sum(weight_BT, axis=1), 1.0)
    hits_BTE = jnp.sum(jax.nn.one_hot(chosen_BTC, experts, dtype=logits_BTE.dtype), axis=2)
    share_BE = jnp.sum(hits_BTE * weight_BT[:, :, None], axis=1) / (n_B[:, None] * chosen_BTC.shape[-1])
    probability_BTE = jax.nn.softmax(logits_BTE, axis=-1)
    mean_BE = jnp.sum(probability_BTE * weight_BT[:, :, None], axis=1) / n_B[:, None]
    z_B = jnp.sum(jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1)) * weight_BT, axis=1) / n_B
    return experts * jnp.sum(share_BE * mean_BE, axis=1), z_B


def activated(f: jax.Array, gate: jax.Array | None, activation: Activation) -> jax.Array:
    """An MLP's hidden units; a gate belongs to swiglu."""
    if gate is not None:
        return jax.nn.silu(gate) * f
    return jnp.square(jax.nn.relu(f)) if activation == "relu2" else jax.nn.gelu(f)


def mixture(
    x_BTD: jax.Array,
    chosen_BTC: jax.Array,
    weights_BTC: jax.Array,
    real_BT: jax.Array,
    expert: Expert,
    *,
    activation: Activation,
    capacity_factor: float | None,
    decoding: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Each token's experts, weighted and added up.

    Args:
        x_BTD: float[B, T, D].
        chosen_BTC: i32[B, T, C], distinct experts of each token.
        weights_BTC: f32[B, T, C].
        real_BT: bool[B, T]; padding goes to no expert.
        expert: their matrices.
        activation: of the hidden units.
        capacity_factor: room of an expert for the tokens of one device, as a multiple of an even share (None: no
            limit). At E / C nothing can be dropped.
        decoding: T is one position, not spread over `context`.

    Returns:
        (float[B, T, D], dropped): dropped is i32[], choices of real tokens that found no room.

    Source: capacity: Lepikhin et al. 2021, arXiv:2006.16668, section 3.2; without: Gale et al. 2022, arXiv:2211.15841.
    """
    spec = partial(dims.act_spec, decoding=decoding)
    letters = Expert("EDF", None if expert.w_gate_EDF is None else "EDF", "EFD")
    expert_specs = jax.tree.map(dims.gathered_spec, letters)
    everywhere = dims.BATCH_AXES if decoding else (*dims.BATCH_AXES, "context")
    if capacity_factor is None:
        others = tuple(axis for axis in everywhere if axis != "expert")
        local = partial(_dropless, activation=activation, other_axes=others)
    else:
        local = partial(_bounded, activation=activation, capacity_factor=capacity_factor)

    def device(x_BTD, chosen_BTC, weights_BTC, real_BT, expert):
        shape, choices = x_BTD.shape, chosen_BTC.shape[-1]
        nowhere = held_experts(expert) * jax.lax.axis_size("expert")
        chosen_BTC = jnp.where(real_BT[:, :, None], chosen_BTC, nowhere)
        out_TD, dropped = local(
            x_BTD.reshape(-1, shape[-1]), chosen_BTC.reshape(-1, choices), weights_BTC.reshape(-1, choices), expert
        )
        return out_TD.reshape(shape), jax.lax.psum(dropped, everywhere)

    return jax.shard_map(
        device,
        in_specs=(spec("BTD"), spec("BTC"), spec("BTC"), spec("BT"), expert_specs),
        out_specs=(spec("BTD"), PartitionSpec()),
    )(x_BTD, chosen_BTC, weights_BTC, real_BT, expert)


def held_experts(expert: Expert) -> int:
    """Experts that this device holds."""
    return expert.w_in_EDF.shape[0]


def _hidden_and_out(rows: jax.Array, expert: Expert, activation: Activation, multiply: Any) -> jax.Array:
    """The experts' MLP of rows that `multiply` knows how to bring to their expert's matrix."""
    gate = None if expert.w_gate_EDF is None else multiply(rows, expert.w_gate_EDF)
    return multiply(activated(multiply(rows, expert.w_in_EDF), gate, activation), expert.w_out_EFD)


def _dropless(x_TD, chosen_TC, weights_TC, expert: Expert, *, activation: Activation, other_axes: tuple[str, ...]):
    """Every token to all of its experts: gather over `expert`, sort, multiply block by block, sum on the way back.

    A block is a number of sorted rows of one expert; the last one of each expert is not full. One device may have to
    take all tokens, but most often has an even share: blocks without rows are passed over. Hidden units exist of one
    block at a time; the backward pass computes them again, as the recomputation of the whole layer would.

    other_axes: over which rows differ and experts do not.
    """
    held, choices = held_experts(expert), chosen_TC.shape[1]
    x_TD, chosen_TC, weights_TC = (jax.lax.all_gather(x, "expert", tiled=True) for x in (x_TD, chosen_TC, weights_TC))
    own_M = chosen_TC.reshape(-1) - jax.lax.axis_index("expert") * held
    own_M = jnp.where((own_M >= 0) & (own_M < held), own_M, held)  # the experts of other devices come last
    sizes_E = jnp.sum(own_M[:, None] == jnp.arange(held)[None], axis=0, dtype=jnp.int32)
    most = x_TD.shape[0] * min(choices, held)  # a token chooses no expert twice
    rows = min(BLOCK_ROWS, max(8, most // (2 * held)))
    order_M = jnp.pad(jnp.argsort(own_M), (0, rows))
    starts_E, blocks_E = jnp.cumsum(sizes_E) - sizes_E, (sizes_E + rows - 1) // rows
    ends_E = jnp.cumsum(blocks_E)
    # so that gradients are summed over devices once, and not in a block that only some of them have
    expert = jax.tree.map(lambda w: jax.lax.pcast(w, other_axes, to="varying"), expert)
    x_TD, weights_M = (jax.lax.pcast(x, "tensor", to="varying") for x in (x_TD, weights_TC.reshape(-1)))

    def multiplied(out_TD, block):
        number = jnp.searchsorted(ends_E, block, side="right")
        done = (block - (ends_E - blocks_E)[number]) * rows  # rows of this expert in earlier blocks
        choice_M = jax.lax.dynamic_slice_in_dim(order_M, starts_E[number] + done, rows)
        used_M1 = (jnp.arange(rows) < sizes_E[number] - done)[:, None]
        own = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, number, keepdims=False), expert)
        rows_MD = jnp.where(used_M1, x_TD[choice_M // choices], 0)
        out_MD = _hidden_and_out(rows_MD, own, activation, jnp.matmul)
        out_MD = jnp.where(used_M1, out_MD * weights_M[choice_M][:, None], 0).astype(x_TD.dtype)
        return out_TD.at[choice_M // choices].add(out_MD)

    @jax.checkpoint
    def step(out_TD, block):
        return jax.lax.cond(block < ends_E[-1], multiplied, lambda out_TD, _: out_TD, out_TD, block), None

    out_TD, _ = jax.lax.scan(step, jnp.zeros_like(x_TD), jnp.arange(most // rows + held))
    out_TD = jax.lax.psum_scatter(out_TD, "expert", tiled=True)
    return jax.lax.psum(out_TD, "tensor"), jnp.zeros_like(sizes_E[0])


def _bounded(x_TD, chosen_TC, weights_TC, expert: Expert, *, activation: Activation, capacity_factor: float):
    """To each expert as many tokens as it has room for, first choices first: all-to-all there and back."""
    tokens, choices = chosen_TC.shape
    held, devices = held_experts(expert), jax.lax.axis_size("expert")
    experts = held * devices
    room = min(tokens, math.ceil(capacity_factor * tokens * choices / experts))
    chosen = chosen_TC.T.reshape(-1)  # all first choices, then all second ones
    order = jnp.argsort(chosen)
    sizes_E = jnp.sum(chosen[:, None] == jnp.arange(experts)[None], axis=0, dtype=jnp.int32)
    place_EM = (jnp.cumsum(sizes_E) - sizes_E)[:, None] + jnp.arange(room)[None]
    used_EM = jnp.arange(room)[None] < sizes_E[:, None]
    choice_EM = order[jnp.where(used_EM, place_EM, 0)]
    token_EM = choice_EM % tokens
    rows_EMD = jnp.where(used_EM[:, :, None], x_TD[token_EM], 0)
    arrived_EMD = _exchanged(rows_EMD, devices)
    out_EMD = _hidden_and_out(arrived_EMD, expert, activation, lambda rows, w: jnp.einsum("EMI,EIO->EMO", rows, w))
    out_EMD = _returned(out_EMD, devices)
    weight_EM1 = weights_TC.T.reshape(-1)[choice_EM][:, :, None]
    out_EMD = jnp.where(used_EM[:, :, None], out_EMD * weight_EM1, 0).astype(x_TD.dtype)
    out_TD = jnp.zeros_like(x_TD).at[token_EM].add(out_EMD)
    return jax.lax.psum(out_TD, "tensor"), jnp.sum(jnp.maximum(sizes_E - room, 0))


def _exchanged(rows_EMD: jax.Array, devices: int) -> jax.Array:
    """Rows for all experts from here -> rows for the experts held here from all devices of the axis."""
    experts, room, width = rows_EMD.shape
    rows = rows_EMD.reshape(devices, experts // devices, room, width)
    rows = jax.lax.all_to_all(rows, "expert", 0, 0)
    return jnp.moveaxis(rows, 0, 1).reshape(experts // devices, devices * room, width)


def _returned(rows_EMD: jax.Array, devices: int) -> jax.Array:
    """The way back of `_exchanged`."""
    held, rooms, width = rows_EMD.shape
    rows = jnp.moveaxis(rows_EMD.reshape(held, devices, rooms // devices, width), 1, 0)
    return jax.lax.all_to_all(rows, "expert", 0, 0).reshape(held * devices, rooms // devices, width)
