"""Attention: the mask, the reference kernel, and the one signature that every kernel obeys.

Kernels see the local block of each device (they run under `shard_map`): queries of this device's rows, positions and
heads against all S keys of the same rows.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from gptjax import dims
from gptjax.nn.kernels import SAVED, Kernel, chosen_kernel, cudnn_kernel, splash, splash_local, splash_spec


def attention_mask(
    q_segments_BT: jax.Array,
    kv_segments_BS: jax.Array,
    q_offset: jax.Array | int,
    *,
    causal: bool,
    window: int | None = None,
) -> jax.Array:
    """Which positions may be attended: same document, not padding, near enough and, if causal, not later.

    Args:
        q_segments_BT: i32[B, T], document of each query; 0 = padding.
        kv_segments_BS: i32[B, S], document of each key; 0 = padding or an empty cache slot.
        q_offset: index of the first query on the axis of the keys.
        causal: forbid keys with a larger index than the query's.
        window: forbid keys whose index differs by this or more (None: none).

    Returns:
        bool[B, T, S]; a padded query attends nothing.
    """
    mask_BTS = (q_segments_BT[:, :, None] == kv_segments_BS[:, None, :]) & (q_segments_BT > 0)[:, :, None]
    if not causal and window is None:
        return mask_BTS
    q_T = jnp.arange(q_segments_BT.shape[1]) + q_offset
    s_S = jnp.arange(kv_segments_BS.shape[1])
    ahead_1TS = (s_S[None, :] - q_T[:, None])[None]
    if causal:
        mask_BTS &= ahead_1TS <= 0
    return mask_BTS if window is None else mask_BTS & (jnp.abs(ahead_1TS) < window)


def reference_kernel(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array,
    *,
    scale: float,
    soft_cap: float | None = None,
) -> jax.Array:
    """Softmax attention with grouped queries; scores and softmax in at least float32.

    Args:
        q_BTNH: float[B, T, N, H]; query head n reads key-value head n // (N / K).
        k_BSKH: float[B, S, K, H].
        v_BSKH: float[B, S, K, H].
        mask_BTS: bool[B, T, S].
        scale: factor on the scores.
        soft_cap: scores become soft_cap * tanh(score / soft_cap) (None: they stay; Gemma 2, arXiv:2408.00118).

    Returns:
        float[B, T, N, H] in q's dtype; 0 where a query attends nothing.
    """
    batch, length, heads, width = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q_BTKGH = (q_BTNH * scale).reshape(batch, length, kv_heads, heads // kv_heads, width)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=dtype)
    if soft_cap is not None:
        scores_BKGTS = soft_cap * jnp.tanh(scores_BKGTS / soft_cap)
    mask_B11TS = mask_BTS[:, None, None]
    scores_BKGTS = jnp.where(mask_B11TS, scores_BKGTS, jnp.finfo(dtype).min)
    weights_BKGTS = jnp.where(mask_B11TS, jax.nn.softmax(scores_BKGTS, axis=-1), 0.0).astype(q_BTNH.dtype)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH)
    return checkpoint_name(out_BTKGH.reshape(batch, length, heads, width), SAVED)


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_segments_BT: jax.Array,
    kv_segments_BS: jax.Array,
    *,
    causal: bool,
    q_offset: jax.Array | int = 0,
    decoding: bool = False,
    kernel: Kernel = "auto",
    window: int | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Attention over a mesh: rows, query positions and heads stay in place, keys are gathered over `context`.

    Args:
        q_BTNH: float[B, T, N, H].
        k_BSKH: float[B, S, K, H]; N is a multiple of K.
        v_BSKH: float[B, S, K, H].
        q_segments_BT: i32[B, T]; 0 = padding.
        kv_segments_BS: i32[B, S]; 0 = padding or an empty cache slot.
        causal: forbid keys with a larger index than the query's.
        q_offset: index of query 0 on the axis of the keys (the cache position while decoding).
        decoding: queries are not spread over `context`; the reference kernel serves.
        kernel: see gptjax.nn.kernels; fused kernels take q_offset as 0 and S as the length of the whole row.
        window: keys whose index differs by this or more are forbidden (None: none).
        soft_cap: scores become soft_cap * tanh(score / soft_cap) (None: they stay).

    Returns:
        float[B, T, N, H] in q's dtype and layout.

    Raises:
        ValueError: the kernel that was asked for cannot serve these sizes.
    """
    mesh, scale = jax.sharding.get_abstract_mesh(), q_BTNH.shape[-1] ** -0.5
    shards = 1 if decoding else mesh.shape["context"]
    length, keys = q_BTNH.shape[1], k_BSKH.shape[1]
    if decoding:
        kernel = "reference"
    kernel = chosen_kernel(
        kernel, queries=length // shards, keys=keys, width=q_BTNH.shape[-1], dtype=q_BTNH.dtype, soft_cap=soft_cap
    )
    fused, fused_spec = None, None
    if kernel == "splash":
        heads = q_BTNH.shape[2] // mesh.shape["tensor"]
        fused = splash(length, keys, heads, causal=causal, window=window, soft_cap=soft_cap, shards=shards)
        fused_spec = splash_spec(fused)
        fused = jax.tree.map(jax.sharding.reshard, fused, fused_spec)
    about = {"causal": causal, "window": window, "soft_cap": soft_cap, "scale": scale}
    local = partial(_local, kernel=kernel, spread=not decoding, **about)
    q_spec, kv_spec, segment_spec = dims.act_spec("BTNH", decoding=decoding), dims.act_spec("BSKH"), dims.act_spec("BS")
    row_specs = (q_spec, kv_spec, kv_spec, dims.act_spec("BT", decoding=decoding), segment_spec, PartitionSpec())
    return jax.shard_map(
        local,
        in_specs=(fused_spec, *row_specs),
        out_specs=q_spec,
        check_vma=fused is None,  # Pallas kernels do not say over which axes their results vary
    )(
        fused,
        q_BTNH,
        jax.sharding.reshard(k_BSKH, kv_spec),
        jax.sharding.reshard(v_BSKH, kv_spec),
        q_segments_BT,
        jax.sharding.reshard(kv_segments_BS, segment_spec),
        jnp.asarray(q_offset, jnp.int32),
    )


def _local(
    fused: Any,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_segments_BT: jax.Array,
    kv_segments_BS: jax.Array,
    q_offset: jax.Array,
    *,
    kernel: str,
    spread: bool,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    scale: float,
) -> jax.Array:
    """Attention of one device's queries; spread: they are a piece of those along `context`."""
    if fused is not None:
        return splash_local(fused, q_BTNH, k_BSKH, v_BSKH, q_segments_BT, kv_segments_BS, scale=scale)
    if spread:
        q_offset = q_offset + jax.lax.axis_index("context") * q_BTNH.shape[1]
    mask_BTS = attention_mask(q_segments_BT, kv_segments_BS, q_offset, causal=causal, window=window)
    if kernel == "cudnn":
        return cudnn_kernel(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale=scale)
    return reference_kernel(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale=scale, soft_cap=soft_cap)
