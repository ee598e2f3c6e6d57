"""Sizes and switches of the decoder Transformer, their validation, and what they cost."""

from dataclasses import dataclass
from typing import Literal

from gptjax.choices import check_choices, check_numbers
from gptjax.nn.kernels import Kernel
from gptjax.nn.product import Matmuls


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder Transformer; the defaults are Llama-style, `gpt_style` switches give GPT-2's block.

    vocab_size: tokens.  layers: blocks.  width: D.  heads: query heads.  kv_heads: key-value heads (None: as many).
    head_width: H (None: width / heads).  hidden: F of the MLP (None: 4 x width).  max_length: longest position + 1.
    positions: rotary, or a learned table.  norm: rms or layer.  activation: gelu,
    relu2 (squared ReLU, arXiv:2109.08668; the cheapest on a CPU), or swiglu (a gated MLP).
    bias: biases in projections; experts have none.  tied: the embedding is also the unembedding.
    dropout: rate on residual branches.
    dtype: of activations and matmuls; parameters are float32 (float64 when JAX runs in 64 bits and dtype is float64).
    matmuls: projections of attention and MLP: full, or with weights and activations quantised to int8 or fp8 (extra
    quant; see gptjax.nn.product). Attention's scores, embedding, unembedding and norms are never quantised.
    remat: what the backward pass recomputes of a block: nothing (none), all but matmul results (matmuls), all but
    attention's result (attention), everything (full), or everything from inputs kept in the host's memory (offload).
    attention: the kernel: reference, splash (TPU), cudnn (NVIDIA GPU), or auto: whichever of them suits the platform.
    window: a token attends itself and the window - 1 tokens before it (None: all of its document so far).
    soft_cap: attention scores become soft_cap * tanh(score / soft_cap) (None: they stay).
    spread_norms: between attention and MLP, and where remat keeps it, a row is spread over `tensor` too (sequence
    parallelism, arXiv:2205.05198): 1 / tensor of the memory, the same bytes on the network.
    context_attention: how rows spread over the mesh's `context` axis attend: gather (every device gets the keys and
    values of whole rows) or ring (they travel, and memory falls with the axis; see gptjax.nn.context).
    experts: MLPs of which a router chooses experts_per_token for each token (None: one MLP serves all; see
    gptjax.nn.experts).  capacity_factor: room of an expert, as a multiple of an even share (None: nothing is dropped).
    balance_coefficient, router_z_coefficient: weights of the router's losses, which every objective adds to its own.
    mup_base_width: width at which muP is the standard parametrization, so that the learning rate tuned there serves
    every width (None: standard at all widths): logits are scaled by base / width, an untied head starts at zero, and
    learning rates go by parameter (see gptjax.optim.optimizer).
    mup_base_head_width: H at the base, where H grows with the width: attention scores are scaled by its root over H,
    which falls as 1 / H (None: heads are equally wide at all widths, and scores are scaled by H ** -.5 as ever).
    mup_base_layers: the same for depth (CompleteP): residual branches are scaled by base / layers.
    unroll: layers per iteration of the scan over layers. On a CPU, where XLA runs most of a loop's body on one core,
    all of them at once halve the time of a step; on accelerators 1 keeps compiling short. Numbers between the two are
    refused.
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
    matmuls: Matmuls = "full"
    remat: Literal["none", "matmuls", "attention", "full", "offload"] = "none"
    attention: Kernel = "auto"
    window: int | None = None
    soft_cap: float | None = None
    spread_norms: bool = False
    context_attention: Literal["gather", "ring"] = "gather"
    experts: int | None = None
    experts_per_token: int = 2
    capacity_factor: float | None = None
    balance_coefficient: float = 0.01
    router_z_coefficient: float = 0.0
    unroll: int = 1
    mup_base_width: int | None = None
    mup_base_head_width: int | None = None
    mup_base_layers: int | None = None

    def __post_init__(self) -> None:
        check_choices(self, "model")
        sizes = ("vocab_size", "layers", "width", "heads", "max_length", "unroll", "kv_heads", "window")
        check_numbers(
            self,
            "model",
            at_least_1=(*sizes, "mup_base_width", "mup_base_head_width", "mup_base_layers"),
            positive=("soft_cap", "capacity_factor"),
            not_negative=("balance_coefficient", "router_z_coefficient"),
            from_0_below_1=("dropout",),
        )
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"model.width {self.width} is not a multiple of model.heads {self.heads}: change one or set head_width"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if self.positions == "rotary" and self.sizes["H"] % 2:
            raise ValueError(f"rotary positions need an even head width, got {self.sizes['H']}")
        if 1 < self.unroll < self.layers:  # JAX splits the stack in a way that its explicit sharding does not know
            raise ValueError(
                f"model.unroll {self.unroll} lies between 1 and model.layers {self.layers}: set it to one of the two"
            )
        for name in ("mup_base_layers", "mup_base_head_width"):
            if getattr(self, name) is not None and self.mup_base_width is None:
                raise ValueError(f"model.{name} needs model.mup_base_width: its scaling is part of muP")
        if self.experts is not None:
            self._check_experts(self.experts)

    def _check_experts(self, experts: int) -> None:
        if self.matmuls != "full":
            raise ValueError(
                f"model.matmuls {self.matmuls!r} does not know experts (model.experts {experts}): choose 'full'"
            )
        if not 1 <= self.experts_per_token <= experts:
            raise ValueError(
                f"model.experts_per_token must lie between 1 and model.experts {experts}, got {self.experts_per_token}"
            )

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
        } | ({} if self.experts is None else {"E": self.experts})

    @property
    def width_ratio(self) -> float:
        """Width over muP's base width; 1 in the standard parametrization."""
        return 1.0 if self.mup_base_width is None else self.width / self.mup_base_width

    @property
    def depth_ratio(self) -> float:
        """Layers over muP's base layers; 1 without depth scaling."""
        return 1.0 if self.mup_base_layers is None else self.layers / self.mup_base_layers

    def matmul_parameters(self, *, scalar: bool = False) -> int:
        """Parameters that a token is multiplied with: the blocks' matrices, of experts its own, and the unembedding.

        scalar: a head of one number per token stands in place of the unembedding.
        """
        s = self.sizes
        attention = s["D"] * s["H"] * (2 * s["N"] + 2 * s["K"])
        mlp = (3 if self.activation == "swiglu" else 2) * s["D"] * s["F"]
        mlp *= 1 if self.experts is None else self.experts_per_token
        router = s["D"] * (self.experts or 0)
        return s["L"] * (attention + mlp + router) + (1 if scalar else s["V"]) * s["D"]

    def attended(self, length: int, *, causal: bool = True) -> float:
        """Keys that a token of a row of one document attends, on average."""
        if self.window is None or self.window >= length:
            return length / (2 if causal else 1)
        one_side = self.window * (1 - self.window / (2 * length))  # rows begin with shorter windows
        return one_side if causal else min(2 * one_side, length)

    def forward_flops_per_token(self, length: int, *, causal: bool = True, scalar: bool = False) -> float:
        """FLOPs of one forward pass per token of rows of `length` tokens; scalar: as in `matmul_parameters`."""
        s = self.sizes
        attended = self.attended(length, causal=causal)
        return 2.0 * self.matmul_parameters(scalar=scalar) + 4.0 * s["L"] * s["N"] * s["H"] * attended

    def train_flops_per_token(self, length: int, *, causal: bool = True, scalar: bool = False) -> float:
        """FLOPs of one forward and backward pass per token of rows of `length` tokens (a multiply-add is 2).

        6 x matmul parameters + 12 L N H T_eff; attention looks at T keys, causal attention at T / 2 on average.
        scalar: a head of one number per token stands in place of the unembedding.
        Recomputation (remat) is not counted, as in model FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B).
        """
        return 3.0 * self.forward_flops_per_token(length, causal=causal, scalar=scalar)
