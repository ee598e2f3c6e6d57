"""One block of the Transformer, declared for all layers at once: each parameter has a leading L to scan over."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from gptjax import dims
from gptjax.model.config import ModelConfig
from gptjax.model.moe import Moe
from gptjax.model.parameters import declare, use
from gptjax.model_types import RouterSums
from gptjax.nn.attention import attention
from gptjax.nn.context import ring_attention
from gptjax.nn.experts import activated
from gptjax.nn.gather import PARTIAL_ROWS, gathered, gathered_rows, scattered_rows
from gptjax.nn.norm import layer_norm, rms_norm
from gptjax.nn.product import product
from gptjax.nn.rope import rotate


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero entries with probability `rate` and scale the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    uniform = jax.random.uniform(key, x.shape, out_sharding=jax.typeof(x).sharding.spec)
    return jnp.where(uniform >= rate, x / (1.0 - rate), 0).astype(x.dtype)


class Norm(nnx.Module):
    def __init__(self, config: ModelConfig, stacked: str):
        self.config = config
        self.scale_D = declare(config, stacked + "D", "norm", mean=1.0)
        self.bias_D = declare(config, stacked + "D", "norm") if config.norm == "layer" else None

    def __call__(self, h_BTD: jax.Array) -> jax.Array:
        scale_D = use(self.scale_D, "D", self.scale_D.get_value().dtype)
        if self.bias_D is None:
            return rms_norm(h_BTD, scale_D, eps=self.config.norm_eps)
        return layer_norm(h_BTD, scale_D, use(self.bias_D, "D", scale_D.dtype), eps=self.config.norm_eps)

    def whole(self, h_BTD: jax.Array) -> jax.Array:
        """Normalised, and no longer spread over `tensor`: what a projection takes."""
        return gathered_rows(self(h_BTD)) if self.config.spread_norms else self(h_BTD)


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig):
        self.config = config
        s = config.sizes
        std_in = s["D"] ** -0.5
        std_out = (s["N"] * s["H"]) ** -0.5 / (2 * (config.mup_base_layers or s["L"])) ** 0.5
        self.wq_DNH = declare(config, "LDNH", "matrix", std=std_in)
        self.wk_DKH = declare(config, "LDKH", "matrix", std=std_in)
        self.wv_DKH = declare(config, "LDKH", "matrix", std=std_in)
        self.wo_NHD = declare(config, "LNHD", "matrix", std=std_out)
        self.bq_NH = declare(config, "LNH", "bias") if config.bias else None
        self.bk_KH = declare(config, "LKH", "bias") if config.bias else None
        self.bv_KH = declare(config, "LKH", "bias") if config.bias else None
        self.bo_D = declare(config, "LD", "bias") if config.bias else None

    def qkv(
        self, h_BTD: jax.Array, positions_BT: jax.Array, *, decoding: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        q_spec, kv_spec = (dims.act_spec(letters, decoding=decoding) for letters in ("BTNH", "BTKH"))
        dtype, matmuls = h_BTD.dtype, self.config.matmuls
        q_BTNH = product("BTD,DNH->BTNH", h_BTD, use(self.wq_DNH, "DNH", dtype), q_spec, matmuls)
        wk_DKH, wv_DKH = (self._of_heads(w, "DKH", dtype) for w in (self.wk_DKH, self.wv_DKH))
        k_BTKH = product("BTD,DKH->BTKH", h_BTD, wk_DKH, kv_spec, matmuls)
        v_BTKH = product("BTD,DKH->BTKH", h_BTD, wv_DKH, kv_spec, matmuls)
        if self.bq_NH is not None and self.bk_KH is not None and self.bv_KH is not None:
            q_BTNH += use(self.bq_NH, "NH", dtype)[None, None]
            k_BTKH += self._of_heads(self.bk_KH, "KH", dtype)[None, None]
            v_BTKH += self._of_heads(self.bv_KH, "KH", dtype)[None, None]
        if self.config.positions == "rotary":
            q_BTNH = rotate(q_BTNH, positions_BT, theta=self.config.rope_theta)
            k_BTKH = rotate(k_BTKH, positions_BT, theta=self.config.rope_theta)
        if (base := self.config.mup_base_head_width) is not None:  # with the kernel's own H ** -.5: as 1 / H
            q_BTNH *= (base / self.config.sizes["H"]) ** 0.5
        return q_BTNH, k_BTKH, v_BTKH

    def _of_heads(self, param: nnx.Param, letters: str, dtype: Any) -> jax.Array:
        """A parameter of key-value heads in use, each head repeated as often as the mesh's `tensor` axis needs."""
        value = param.get_value().astype(dtype)
        dim, copies = letters.index("K"), dims.kv_copies(self.config.sizes["K"])
        if copies > 1:
            shape, spec = value.shape, list(jax.typeof(value).sharding.spec)
            spec[dim] = "tensor"
            value = jnp.broadcast_to(jnp.expand_dims(value, dim + 1), (*shape[: dim + 1], copies, *shape[dim + 1 :]))
            shape = (*shape[:dim], shape[dim] * copies, *shape[dim + 1 :])
            value = jnp.reshape(value, shape, out_sharding=PartitionSpec(*spec))
        return gathered(value, letters)

    def project(self, o_BTNH: jax.Array, *, decoding: bool) -> jax.Array:
        spread = self.config.spread_norms and not decoding
        out_spec = PARTIAL_ROWS if spread else dims.act_spec("BTD", decoding=decoding)
        wo_NHD = use(self.wo_NHD, "NHD", o_BTNH.dtype)
        h_BTD = product("BTNH,NHD->BTD", o_BTNH, wo_NHD, out_spec, self.config.matmuls)
        h_BTD = scattered_rows(h_BTD) if spread else h_BTD
        return h_BTD if self.bo_D is None else h_BTD + use(self.bo_D, "D", h_BTD.dtype)[None, None]


class Mlp(nnx.Module):
    def __init__(self, config: ModelConfig):
        self.config = config
        s = config.sizes
        std_in, std_out = s["D"] ** -0.5, s["F"] ** -0.5 / (2 * (config.mup_base_layers or s["L"])) ** 0.5
        self.w_in_DF = declare(config, "LDF", "matrix", std=std_in)
        self.w_gate_DF = declare(config, "LDF", "matrix", std=std_in) if config.activation == "swiglu" else None
        self.w_out_FD = declare(config, "LFD", "matrix", std=std_out)
        self.b_in_F = declare(config, "LF", "bias") if config.bias else None
        self.b_out_D = declare(config, "LD", "bias") if config.bias else None

    def __call__(self, h_BTD: jax.Array, *, decoding: bool) -> jax.Array:
        dtype, matmuls = h_BTD.dtype, self.config.matmuls
        hidden_spec = dims.act_spec("BTF", decoding=decoding)
        spread = self.config.spread_norms and not decoding
        out_spec = PARTIAL_ROWS if spread else dims.act_spec("BTD", decoding=decoding)
        f_BTF = product("BTD,DF->BTF", h_BTD, use(self.w_in_DF, "DF", dtype), hidden_spec, matmuls)
        if self.b_in_F is not None:
            f_BTF += use(self.b_in_F, "F", dtype)[None, None]
        gate_BTF = None
        if self.w_gate_DF is not None:
            gate_BTF = product("BTD,DF->BTF", h_BTD, use(self.w_gate_DF, "DF", dtype), hidden_spec, matmuls)
        f_BTF = activated(f_BTF, gate_BTF, self.config.activation)
        out_BTD = product("BTF,FD->BTD", f_BTF, use(self.w_out_FD, "FD", dtype), out_spec, matmuls)
        out_BTD = scattered_rows(out_BTD) if spread else out_BTD
        return out_BTD if self.b_out_D is None else out_BTD + use(self.b_out_D, "D", dtype)[None, None]


class Block(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.attention_norm = Norm(config, "L")
        self.attention = Attention(config)
        self.mlp_norm = Norm(config, "L")
        self.mlp = Mlp(config) if config.experts is None else Moe(config)

    def __call__(
        self,
        h_BTD: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        *,
        causal: bool,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array, RouterSums | None]:
        """The block's output, its keys and values for a cache, and what its router has to say."""
        rate = self.config.dropout
        normed_BTD = self.attention_norm.whole(h_BTD)
        q_BTNH, k_BTKH, v_BTKH = self.attention.qkv(normed_BTD, positions_BT, decoding=False)
        o_BTNH = self._attend(q_BTNH, k_BTKH, v_BTKH, segments_BT, causal=causal)
        keys = (None, None) if key is None else jax.random.split(key)
        h_BTD += dropout(self._branch(self.attention.project(o_BTNH, decoding=False)), rate, keys[0])
        out_BTD, router = self._mlp(h_BTD, segments_BT > 0, decoding=False)
        h_BTD += dropout(self._branch(out_BTD), rate, keys[1])
        return h_BTD, k_BTKH, v_BTKH, router

    def _attend(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segments_BT: jax.Array, *, causal: bool
    ) -> jax.Array:
        config = self.config
        about = {"causal": causal, "window": config.window, "soft_cap": config.soft_cap}
        if config.context_attention == "ring":
            return ring_attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, segments_BT, **about)
        return attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, segments_BT, **about, kernel=config.attention)

    def _mlp(self, h_BTD: jax.Array, real_BT: jax.Array, *, decoding: bool) -> tuple[jax.Array, RouterSums | None]:
        """What the MLP adds to the residual stream, and what its router has to say."""
        if isinstance(self.mlp, Moe):
            normed_BTD = reshard(self.mlp_norm(h_BTD), dims.act_spec("BTD", decoding=decoding))
            return self.mlp(normed_BTD, real_BT, decoding=decoding)
        normed_BTD = self.mlp_norm(h_BTD) if decoding else self.mlp_norm.whole(h_BTD)
        return self.mlp(normed_BTD, decoding=decoding), None

    def decode(
        self,
        h_BTD: jax.Array,
        k_BKSH: jax.Array,
        v_BKSH: jax.Array,
        segments_BS: jax.Array,
        positions_BT: jax.Array,
        index: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One position (T = 1) against this layer's keys and values, whose slot `index` it fills in place."""
        q_BTNH, k_BTKH, v_BTKH = self.attention.qkv(self.attention_norm(h_BTD), positions_BT, decoding=True)
        k_BKSH, v_BKSH = (
            jax.lax.dynamic_update_slice_in_dim(seen_BKSH, jnp.swapaxes(new_BTKH, 1, 2), index, axis=2)
            for seen_BKSH, new_BTKH in ((k_BKSH, k_BTKH), (v_BKSH, v_BTKH))
        )
        here_BT = jax.lax.dynamic_slice_in_dim(segments_BS, index, 1, axis=1)
        k_BSKH, v_BSKH = jnp.swapaxes(k_BKSH, 1, 2), jnp.swapaxes(v_BKSH, 1, 2)
        o_BTNH = attention(
            q_BTNH, k_BSKH, v_BSKH, here_BT, segments_BS, causal=True, q_offset=index, decoding=True,
            window=self.config.window, soft_cap=self.config.soft_cap,
        )  # fmt: skip
        h_BTD += self._branch(self.attention.project(o_BTNH, decoding=True))
        out_BTD, _ = self._mlp(h_BTD, here_BT > 0, decoding=True)
        return h_BTD + self._branch(out_BTD), k_BKSH, v_BKSH

    def _branch(self, h_BTD: jax.Array) -> jax.Array:
        """What a branch adds to the residual stream; with depth scaling, all branches together stay of one size."""
        return h_BTD if self.config.mup_base_layers is None else h_BTD / self.config.depth_ratio
