"""One block of the Transformer, declared for all layers at once: each parameter has a leading L to scan over."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard

from gptjax import dims
from gptjax.model.config import ModelConfig
from gptjax.nn.attention import attention
from gptjax.nn.norm import layer_norm, rms_norm
from gptjax.nn.rope import rotate

Role = Literal["matrix", "bias", "norm", "embedding"]


def declare(config: ModelConfig, letters: str, role: Role, *, mean: float = 0.0, std: float = 0.0) -> nnx.Param:
    """A parameter without a value yet: its shape, layout letters, role and initial distribution."""
    dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
    struct = jax.ShapeDtypeStruct(dims.shape(letters, config.sizes), dtype)
    return nnx.Param(struct, letters=letters, role=role, mean=mean, std=std)


def use(param: nnx.Param, letters: str, dtype: Any) -> jax.Array:
    """The parameter in the compute dtype, gathered over `fsdp` (cast first: half the bytes travel)."""
    return reshard(param.get_value().astype(dtype), dims.gathered_spec(letters))


def dropout(x: jax.Array, rate: float, key: jax.Array | None, letters: str) -> jax.Array:
    """Zero entries with probability `rate` and scale the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    uniform = jax.random.uniform(key, x.shape, out_sharding=dims.act_spec(letters))
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


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig):
        self.config = config
        s = config.sizes
        std_in = s["D"] ** -0.5
        std_out = (s["N"] * s["H"]) ** -0.5 / (2 * s["L"]) ** 0.5
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
        dtype = h_BTD.dtype
        q_BTNH = jnp.einsum("BTD,DNH->BTNH", h_BTD, use(self.wq_DNH, "DNH", dtype), out_sharding=q_spec)
        k_BTKH = jnp.einsum("BTD,DKH->BTKH", h_BTD, use(self.wk_DKH, "DKH", dtype), out_sharding=kv_spec)
        v_BTKH = jnp.einsum("BTD,DKH->BTKH", h_BTD, use(self.wv_DKH, "DKH", dtype), out_sharding=kv_spec)
        if self.bq_NH is not None and self.bk_KH is not None and self.bv_KH is not None:
            q_BTNH += use(self.bq_NH, "NH", dtype)[None, None]
            k_BTKH += use(self.bk_KH, "KH", dtype)[None, None]
            v_BTKH += use(self.bv_KH, "KH", dtype)[None, None]
        if self.config.positions == "rotary":
            q_BTNH = rotate(q_BTNH, positions_BT, theta=self.config.rope_theta)
            k_BTKH = rotate(k_BTKH, positions_BT, theta=self.config.rope_theta)
        return q_BTNH, k_BTKH, v_BTKH

    def project(self, o_BTNH: jax.Array, *, decoding: bool) -> jax.Array:
        out_spec = dims.act_spec("BTD", decoding=decoding)
        h_BTD = jnp.einsum("BTNH,NHD->BTD", o_BTNH, use(self.wo_NHD, "NHD", o_BTNH.dtype), out_sharding=out_spec)
        return h_BTD if self.bo_D is None else h_BTD + use(self.bo_D, "D", h_BTD.dtype)[None, None]


class Mlp(nnx.Module):
    def __init__(self, config: ModelConfig):
        self.config = config
        s = config.sizes
        std_in, std_out = s["D"] ** -0.5, s["F"] ** -0.5 / (2 * s["L"]) ** 0.5
        self.w_in_DF = declare(config, "LDF", "matrix", std=std_in)
        self.w_gate_DF = declare(config, "LDF", "matrix", std=std_in) if config.activation == "swiglu" else None
        self.w_out_FD = declare(config, "LFD", "matrix", std=std_out)
        self.b_in_F = declare(config, "LF", "bias") if config.bias else None
        self.b_out_D = declare(config, "LD", "bias") if config.bias else None

    def __call__(self, h_BTD: jax.Array, *, decoding: bool) -> jax.Array:
        dtype = h_BTD.dtype
        hidden_spec, out_spec = (dims.act_spec(letters, decoding=decoding) for letters in ("BTF", "BTD"))
        f_BTF = jnp.einsum("BTD,DF->BTF", h_BTD, use(self.w_in_DF, "DF", dtype), out_sharding=hidden_spec)
        if self.b_in_F is not None:
            f_BTF += use(self.b_in_F, "F", dtype)[None, None]
        if self.w_gate_DF is not None:
            gate_BTF = jnp.einsum("BTD,DF->BTF", h_BTD, use(self.w_gate_DF, "DF", dtype), out_sharding=hidden_spec)
            f_BTF = jax.nn.silu(gate_BTF) * f_BTF
        elif self.config.activation == "relu2":
            f_BTF = jnp.square(jax.nn.relu(f_BTF))
        else:
            f_BTF = jax.nn.gelu(f_BTF)
        out_BTD = jnp.einsum("BTF,FD->BTD", f_BTF, use(self.w_out_FD, "FD", dtype), out_sharding=out_spec)
        return out_BTD if self.b_out_D is None else out_BTD + use(self.b_out_D, "D", dtype)[None, None]


class Block(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.attention_norm = Norm(config, "L")
        self.attention = Attention(config)
        self.mlp_norm = Norm(config, "L")
        self.mlp = Mlp(config)

    def __call__(
        self,
        h_BTD: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        *,
        causal: bool,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The block's output and its keys and values, for a cache."""
        q_BTNH, k_BTKH, v_BTKH = self.attention.qkv(self.attention_norm(h_BTD), positions_BT, decoding=False)
        o_BTNH = attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, segments_BT, causal=causal)
        keys = (None, None) if key is None else jax.random.split(key)
        rate = self.config.dropout
        h_BTD += dropout(self.attention.project(o_BTNH, decoding=False), rate, keys[0], "BTD")
        h_BTD += dropout(self.mlp(self.mlp_norm(h_BTD), decoding=False), rate, keys[1], "BTD")
        return h_BTD, k_BTKH, v_BTKH

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
        o_BTNH = attention(q_BTNH, k_BSKH, v_BSKH, here_BT, segments_BS, causal=True, q_offset=index, decoding=True)
        h_BTD += self.attention.project(o_BTNH, decoding=True)
        return h_BTD + self.mlp(self.mlp_norm(h_BTD), decoding=True), k_BKSH, v_BKSH
