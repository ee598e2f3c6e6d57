"""Sizes and switches of the decoder Transformer, their validation, and what they cost."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder Transformer; the defaults are Llama-style, `gpt_style` switches give GPT-2's block.

    vocab_size: tokens.  layers: blocks.  width: D.  heads: query heads.  kv_heads: key-value heads (None: as many).
    head_width: H (None: width / heads).  hidden: F of the MLP (None: 4 x width).  max_length: longest position + 1.
    positions: rotary, or a learned table.  norm: rms or layer.  activation: gelu,
    relu2 (squared ReLU, arXiv:2109.08668; the cheapest on a CPU), or swiglu (a gated MLP).
    bias: biases in projections.  tied: the embedding is also the unembedding.  dropout: rate on residual branches.
    dtype: of activations and matmuls; parameters are float32 (float64 when JAX runs in 64 bits and dtype is float64).
    remat: what the backward pass recomputes: nothing (none), all but matmul results (matmuls), the whole block (full).
    unroll: layers per iteration of the scan over layers. On a CPU, where XLA runs most of a loop's body on one core,
    all of them at once halve the time of a step; on accelerators 1 keeps compiling short.
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int | None = None
    head_width: int | None = None
    hidden: int | None = None
    max_length: int = 1024
    positions: Literal["rotary", "learned"] = "rotary"
    rope_theta: float = 10_000.0
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    activation: Literal["gelu", "relu2", "swiglu"] = "swiglu"
    bias: bool = False
    tied: bool = True
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    remat: Literal["none", "matmuls", "full"] = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        for field in ("vocab_size", "layers", "width", "heads", "max_length", "unroll"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field} must be at least 1, got {getattr(self, field)}")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"model.width {self.width} is not a multiple of model.heads {self.heads}: change one or set head_width"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ValueError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if self.positions == "rotary" and self.sizes["H"] % 2:
            raise ValueError(f"rotary positions need an even head width, got {self.sizes['H']}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout must lie in [0, 1), got {self.dropout}")

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each parameter dimension, by its letter (see gptjax.dims)."""
        return {
            "V": self.vocab_size,
            "L": self.layers,
            "D": self.width,
            "N": self.heads,
            "K": self.kv_heads or self.heads,
            "H": self.head_width or self.width // self.heads,
            "F": self.hidden or 4 * self.width,
            "T": self.max_length,
        }

    def matmul_parameters(self, *, scalar: bool = False) -> int:
        """Parameters that every token is multiplied with: the blocks' matrices and the unembedding (or scalar head)."""
        s = self.sizes
        attention = s["D"] * s["H"] * (2 * s["N"] + 2 * s["K"])
        mlp = (3 if self.activation == "swiglu" else 2) * s["D"] * s["F"]
        return s["L"] * (attention + mlp) + (1 if scalar else s["V"]) * s["D"]

    def train_flops_per_token(self, length: int, *, causal: bool = True, scalar: bool = False) -> float:
        """FLOPs of one forward and backward pass per token of rows of `length` tokens (a multiply-add is 2).

        6 x matmul parameters + 12 L N H T_eff; attention looks at T keys, causal attention at T / 2 on average.
        scalar: a head of one number per token stands in place of the unembedding.
        Recomputation (remat) is not counted, as in model FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B).
        """
        s = self.sizes
        return 6.0 * self.matmul_parameters(scalar=scalar) + 12.0 * s["L"] * s["N"] * s["H"] * length / (
            2 if causal else 1
        )
