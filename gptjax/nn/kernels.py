"""Fused attention kernels: splash (TPU) and cuDNN (NVIDIA GPU), and which of them serves where."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

Kernel = Literal["auto", "reference", "splash", "cudnn"]
SAVED = "attention"  # name of the kernels' outputs, for rematerialisation policies
_LANES, _CUDNN_WIDTH = 128, 128


def chosen_kernel(kernel: Kernel, *, queries: int, keys: int, width: int, dtype: Any, soft_cap: float | None) -> Kernel:
    """The kernel that serves a call on the current mesh; "auto" takes the fastest one of the platform that can.

    Args:
        kernel: as configured.
        queries: T of one device.
        keys: S.
        width: H.
        dtype: of queries, keys and values.
        soft_cap: as in `gptjax.nn.attention.attention`.

    Raises:
        ValueError: the kernel that was asked for cannot serve these sizes.
    """
    tiled = queries % _LANES == 0 and keys % _LANES == 0
    if kernel == "splash" and not tiled:
        raise ValueError(
            f"model.attention 'splash' works on blocks of {_LANES} positions: a row's {keys} tokens and the {queries} "
            "of one device must be multiples; change the row or take 'auto'"
        )
    if kernel == "cudnn" and soft_cap is not None:
        raise ValueError("model.attention 'cudnn' knows no model.soft_cap: choose 'reference'")
    # jax._src.cudnn refuses the rest; from Hopper on it takes heads of up to 256, but a plan has no device to ask
    served = width <= _CUDNN_WIDTH and width % 8 == 0 and queries % 2 == 0 and keys % 2 == 0
    if kernel == "cudnn" and not served:
        raise ValueError(
            f"model.attention 'cudnn' works on heads of a multiple of 8 up to {_CUDNN_WIDTH} and on even rows, not on "
            f"heads of {width} and a row's {keys} tokens, {queries} on one device: change them or take 'auto'"
        )
    if kernel != "auto":
        return kernel
    if platform() == "tpu" and tiled:
        return "splash"
    if platform() in ("gpu", "cuda") and served and soft_cap is None and dtype in (jnp.bfloat16, jnp.float16):
        return "cudnn"
    return "reference"


def platform() -> str:
    """Of the devices of the current mesh, which may be absent while a plan is made."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def splash(
    length: int, keys: int, heads: int, *, causal: bool, window: int | None, soft_cap: float | None, shards: int
) -> Any:
    """The splash kernel of one device's heads, an array-valued pytree; `splash_local` calls it.

    Args:
        length: T of all devices along `context`.
        keys: S.
        heads: query heads of one device.
        causal: forbid keys with a larger index than the query's.
        window: keys at this distance or further are forbidden (None: none are).
        soft_cap: scores become soft_cap * tanh(score / soft_cap) (None: they stay).
        shards: devices along `context`, among which the queries are cut.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    block_q, block_k = _block(length // shards), _block(keys)
    blocks = library.BlockSizes(
        block_q=block_q, block_kv=block_k, block_q_dkv=block_q, block_kv_dkv=block_k, block_kv_dkv_compute=block_k,
        block_q_dq=block_q, block_kv_dq=block_k,
    )  # fmt: skip
    if window is not None:
        after = 0 if causal else window - 1
        mask = library.LocalMask((length, keys), window_size=(window - 1, after), offset=0, shard_count=shards)
    elif causal:
        mask = library.CausalMask((length, keys), shard_count=shards)
    else:
        mask = library.FullMask((length, keys))
    return library.make_splash_mha(
        mask=library.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=shards,
        attn_logits_soft_cap=soft_cap,
        residual_checkpoint_name=SAVED,
        interpret=platform() != "tpu",
    )


def splash_spec(kernel: Any) -> Any:
    """The layout of the kernel's arrays: query blocks over `context`."""
    spec = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec(None, "context"))
    return kernel.manual_sharding_spec(spec)


def splash_local(
    kernel: Any,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_segments_BT: jax.Array,
    kv_segments_BS: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    """float[B, T, N, H]: the splash kernel on each row; 0 where the query is padding.

    Padding attends padding inside the kernel, which needs a key for every query.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    q_BNTH, k_BKSH, v_BKSH = (jnp.swapaxes(x, 1, 2) for x in (q_BTNH * scale, k_BSKH, v_BSKH))

    def row(q_NTH, k_KSH, v_KSH, q_segments_T, kv_segments_S):
        return kernel(q_NTH, k_KSH, v_KSH, segment_ids=SegmentIds(q=q_segments_T, kv=kv_segments_S))

    out_BNTH = jax.vmap(row)(q_BNTH, k_BKSH, v_BKSH, q_segments_BT, kv_segments_BS)
    return jnp.where((q_segments_BT > 0)[:, :, None, None], jnp.swapaxes(out_BNTH, 1, 2), 0)


def cudnn_kernel(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array,
    *,
    scale: float,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Fused attention through jax.nn.dot_product_attention; arguments as `gptjax.nn.attention.reference_kernel`.

    Args:
        implementation: "xla" computes the same without cuDNN, so that the program can be lowered and compared where
            cuDNN is not installed.
    """
    attend = partial(jax.nn.dot_product_attention, scale=scale, implementation=implementation)
    out_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None])
    attending_BT = jnp.any(mask_BTS, axis=2)
    return checkpoint_name(jnp.where(attending_BT[:, :, None, None], out_BTNH, 0), SAVED)


def _block(length: int) -> int:
    """The largest multiple of 128 up to 512 that divides the length."""
    return next(size for size in (512, 384, 256, 128) if length % size == 0)
