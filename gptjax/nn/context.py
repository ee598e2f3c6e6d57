"""Ring attention: keys and values travel around the `context` axis, and scores exist one block at a time.

Each device keeps its queries. In as many turns as the axis is long, it meets the keys and values of every device,
folds them into a running softmax, and passes them on. The backward pass makes the same journey, on which the gradients
of keys and values travel with them. What a device holds therefore falls with the length of the axis, in both passes;
with an axis of length 1 this is blockwise attention.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gptjax import dims
from gptjax.nn.attention import attention_mask
from gptjax.nn.kernels import SAVED


class _Rule(NamedTuple):
    """What does not depend on arrays: which keys are attended, and the longest side of a block of scores."""

    causal: bool
    window: int | None
    soft_cap: float | None
    scale: float
    block: int


def ring_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_segments_BT: jax.Array,
    kv_segments_BS: jax.Array,
    *,
    causal: bool,
    window: int | None = None,
    soft_cap: float | None = None,
    block: int = 512,
) -> jax.Array:
    """`gptjax.nn.attention.attention` of whole rows, without ever gathering keys and values.

    Args:
        q_BTNH: float[B, T, N, H], T spread over `context`.
        k_BSKH: float[B, S, K, H], S = T, spread alike; N is a multiple of K.
        v_BSKH: float[B, S, K, H].
        q_segments_BT: i32[B, T]; 0 = padding.
        kv_segments_BS: i32[B, S]; 0 = padding.
        causal: forbid keys with a larger index than the query's.
        window: keys whose index differs by this or more are forbidden (None: none).
        soft_cap: scores become soft_cap * tanh(score / soft_cap) (None: they stay).
        block: longest side of a block of scores (positions); a divisor of each device's positions is taken.

    Returns:
        float[B, T, N, H] in q's dtype and layout.

    Source: Liu et al. 2023, arXiv:2310.01889; the running softmax and its gradient: Dao et al. 2022, arXiv:2205.14135.
    """
    rule = _Rule(causal, window, soft_cap, q_BTNH.shape[-1] ** -0.5, block)
    q_spec, kv_spec, segment_spec = (dims.act_spec(letters) for letters in ("BTNH", "BTKH", "BT"))
    return jax.shard_map(
        partial(_ring, rule),
        in_specs=(q_spec, kv_spec, kv_spec, segment_spec, segment_spec),
        out_specs=q_spec,
    )(q_BTNH, k_BSKH, v_BSKH, q_segments_BT, kv_segments_BS)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(rule: _Rule, q_BTNH, k_BSKH, v_BSKH, q_segments_BT, kv_segments_BS):
    """What one device does; everything after `rule` is its own share."""
    return _forward(rule, q_BTNH, k_BSKH, v_BSKH, q_segments_BT, kv_segments_BS)[0]


def _forward(rule: _Rule, q_BTNH, k_BSKH, v_BSKH, q_segments_BT, kv_segments_BS):
    """(output, what the backward pass needs)."""
    queries = _query_blocks(rule, q_BTNH, q_segments_BT, k_BSKH.shape[2])
    keys = _key_blocks(rule, k_BSKH, v_BSKH, kv_segments_BS)
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    low = jnp.full_like(queries["q"][..., 0], jnp.finfo(wide).min, dtype=wide)
    start = {"most": low, "total": jnp.zeros_like(low), "out": jnp.zeros_like(queries["q"], dtype=wide)}

    def turn(carry, number):
        keys, running = carry
        arriving = _passed_on(keys)  # does not depend on this turn's work, so the two can overlap
        firsts = _key_firsts(keys, number)

        def of_queries(_, block):
            query, running = block
            return (), jax.lax.scan(partial(_absorbed, rule, query), running, (keys, firsts))[0]

        _, running = jax.lax.scan(of_queries, (), (queries, running))
        return (arriving, running), None

    (_, running), _ = jax.lax.scan(turn, (keys, start), jnp.arange(jax.lax.axis_size("context")))
    total = jnp.where(running["total"] > 0, running["total"], 1.0)  # a query that attends nothing: 0 / 1
    out_BTNH = checkpoint_name(_joined(running["out"] / total[..., None], q_BTNH.shape).astype(q_BTNH.dtype), SAVED)
    log_total = checkpoint_name(running["most"] + jnp.log(total), SAVED)
    return out_BTNH, (q_BTNH, k_BSKH, v_BSKH, q_segments_BT, kv_segments_BS, out_BTNH, log_total)


def _backward(rule: _Rule, kept, d_out_BTNH):
    """Gradients of queries, keys and values."""
    q_BTNH, k_BSKH, v_BSKH, q_segments_BT, kv_segments_BS, out_BTNH, log_total = kept
    kv_heads, wide = k_BSKH.shape[2], log_total.dtype
    dot_BTN = jnp.sum(d_out_BTNH.astype(wide) * out_BTNH.astype(wide), axis=-1)
    queries = _query_blocks(rule, q_BTNH, q_segments_BT, kv_heads) | {
        "d_out": _blocks(rule, _grouped(d_out_BTNH, kv_heads)),
        "dot": _blocks(rule, _grouped(dot_BTN, kv_heads)),
        "log_total": log_total,
    }
    keys = _key_blocks(rule, k_BSKH, v_BSKH, kv_segments_BS)
    d_keys = {name: jnp.zeros_like(keys[name], dtype=wide) for name in ("k", "v")}

    def turn(carry, number):
        keys, d_keys, d_q = carry
        arriving = _passed_on(keys)
        firsts = _key_firsts(keys, number)

        def of_queries(d_keys, block):
            query, d_q = block
            d_q, d_keys = jax.lax.scan(partial(_gradients, rule, query), d_q, (keys, firsts, d_keys))
            return d_keys, d_q

        d_keys, d_q = jax.lax.scan(of_queries, d_keys, (queries, d_q))
        return (arriving, _passed_on(d_keys), d_q), None

    start = keys, d_keys, jnp.zeros_like(queries["q"], dtype=wide)
    (_, d_keys, d_q), _ = jax.lax.scan(turn, start, jnp.arange(jax.lax.axis_size("context")))
    d_q_BTNH = (_joined(d_q, q_BTNH.shape) * rule.scale).astype(q_BTNH.dtype)
    d_k_BSKH, d_v_BSKH = (_joined(d_keys[name], k_BSKH.shape).astype(k_BSKH.dtype) for name in ("k", "v"))
    return d_q_BTNH, d_k_BSKH, d_v_BSKH, None, None


_ring.defvjp(_forward, _backward)


def _absorbed(rule: _Rule, query: dict[str, Any], running: dict[str, Any], block: Any):
    """The running softmax of a block of queries after one more block of keys; a scan's body over keys."""
    key, first = block

    def updated(running):
        scores_BTKGS, mask_BT11S = _scores(rule, query, key, first)
        most_BTKG = jnp.maximum(running["most"], jnp.max(scores_BTKGS, axis=-1, where=mask_BT11S, initial=-jnp.inf))
        weights_BTKGS = jnp.where(mask_BT11S, jnp.exp(scores_BTKGS - most_BTKG[..., None]), 0.0)
        shrink_BTKG = jnp.exp(running["most"] - most_BTKG)
        v_BSKH = key["v"].astype(weights_BTKGS.dtype)
        out_BTKGH = jnp.einsum("BTKGS,BSKH->BTKGH", weights_BTKGS, v_BSKH)
        return {
            "most": most_BTKG,
            "total": running["total"] * shrink_BTKG + jnp.sum(weights_BTKGS, axis=-1),
            "out": running["out"] * shrink_BTKG[..., None] + out_BTKGH,
        }

    return _where_reached(rule, query, key, first, updated, running), None


def _gradients(rule: _Rule, query: dict[str, Any], d_q_BTKGH: jax.Array, block: Any):
    """The gradients so far of a block of queries (still without the scale) and of keys; a scan's body over keys."""
    key, first, d_key = block

    def updated(grads):
        d_q_BTKGH, d_key = grads
        scores_BTKGS, mask_BT11S = _scores(rule, query, key, first)
        wide = scores_BTKGS.dtype
        weights_BTKGS = jnp.where(mask_BT11S, jnp.exp(scores_BTKGS - query["log_total"][..., None]), 0.0)
        q_BTKGH, d_out_BTKGH = query["q"].astype(wide), query["d_out"].astype(wide)
        k_BSKH, v_BSKH = key["k"].astype(wide), key["v"].astype(wide)
        d_v_BSKH = jnp.einsum("BTKGS,BTKGH->BSKH", weights_BTKGS, d_out_BTKGH)
        d_weights_BTKGS = jnp.einsum("BTKGH,BSKH->BTKGS", d_out_BTKGH, v_BSKH)
        d_scores_BTKGS = weights_BTKGS * (d_weights_BTKGS - query["dot"][..., None])
        if rule.soft_cap is not None:
            d_scores_BTKGS *= 1.0 - jnp.square(scores_BTKGS / rule.soft_cap)
        d_q_BTKGH += jnp.einsum("BTKGS,BSKH->BTKGH", d_scores_BTKGS, k_BSKH)
        d_k_BSKH = jnp.einsum("BTKGS,BTKGH->BSKH", d_scores_BTKGS, q_BTKGH) * rule.scale
        return d_q_BTKGH, {"k": d_key["k"] + d_k_BSKH, "v": d_key["v"] + d_v_BSKH}

    return _where_reached(rule, query, key, first, updated, (d_q_BTKGH, d_key))


def _scores(rule: _Rule, query: dict[str, Any], key: dict[str, Any], first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores [B, T, K, G, S] of a block in at least float32, and its mask."""
    wide = jnp.promote_types(query["q"].dtype, jnp.float32)
    q_BTKGH, k_BSKH = query["q"] * rule.scale, key["k"]
    scores_BTKGS = jnp.einsum("BTKGH,BSKH->BTKGS", q_BTKGH, k_BSKH, preferred_element_type=wide)
    offset = query["first"] - first
    mask_BTS = attention_mask(query["segments"], key["segments"], offset, causal=rule.causal, window=rule.window)
    if rule.soft_cap is not None:
        scores_BTKGS = rule.soft_cap * jnp.tanh(scores_BTKGS / rule.soft_cap)
    return scores_BTKGS, mask_BTS[:, :, None, None]


def _where_reached(rule: _Rule, query: dict[str, Any], key: dict[str, Any], first: jax.Array, update: Any, carry: Any):
    """update(carry), or carry where no query of the block may look at any key of the other for its place alone."""
    t, s = query["segments"].shape[1], key["segments"].shape[1]
    ahead, behind = first - (query["first"] + t - 1), query["first"] - (first + s - 1)  # nearest pair, either way
    reached = []
    if rule.causal:
        reached.append(ahead <= 0)
    if rule.window is not None:
        reached += [behind < rule.window, ahead < rule.window]
    if not reached:
        return update(carry)
    return jax.lax.cond(jnp.all(jnp.stack(reached)), update, lambda carry: carry, carry)


def _query_blocks(rule: _Rule, q_BTNH: jax.Array, segments_BT: jax.Array, kv_heads: int) -> dict[str, Any]:
    """Queries by key-value head, their segments, and the place of each block's first query in the whole row."""
    segments = _blocks(rule, segments_BT)
    home = jax.lax.axis_index("context") * q_BTNH.shape[1]
    firsts = home + jnp.arange(segments.shape[0]) * segments.shape[2]
    return {"q": _blocks(rule, _grouped(q_BTNH, kv_heads)), "segments": segments, "first": firsts}


def _key_blocks(rule: _Rule, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BS: jax.Array) -> dict[str, Any]:
    return {"k": _blocks(rule, k_BSKH), "v": _blocks(rule, v_BSKH), "segments": _blocks(rule, segments_BS)}


def _key_firsts(keys: dict[str, Any], turn: jax.Array) -> jax.Array:
    """Place in the whole row of the first key of each block that is here on this turn."""
    blocks, _, length = keys["segments"].shape
    devices = jax.lax.axis_size("context")
    source = (jax.lax.axis_index("context") - turn) % devices
    return (source * blocks + jnp.arange(blocks)) * length


def _passed_on(tree: Any) -> Any:
    """What the previous device of the ring holds; this one's goes to the next."""
    devices = jax.lax.axis_size("context")
    ring = [(device, (device + 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, "context", ring), tree)


def _grouped(x: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, N, ...] -> [B, T, K, G, ...]."""
    return x.reshape(*x.shape[:2], kv_heads, x.shape[2] // kv_heads, *x.shape[3:])


def _blocks(rule: _Rule, x: jax.Array) -> jax.Array:
    """[B, T, ...] -> [blocks, B, T / blocks, ...]."""
    length = max(size for size in range(1, rule.block + 1) if x.shape[1] % size == 0)
    return jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // length, length, *x.shape[2:]), 1, 0)


def _joined(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[blocks, B, T / blocks, ...] -> `shape`, which begins with B, T."""
    return jnp.moveaxis(x, 0, 1).reshape(shape)
