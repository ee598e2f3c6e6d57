"""Parameters and training FLOPs of a model under every convention in use, because the convention decides exponents."""

from dataclasses import dataclass

from gptjax.model.config import ModelConfig

PARAMETER_CONVENTIONS = ("total", "non_embedding", "matmul")
FLOP_CONVENTIONS = ("exact", "exact_full", "6n_total", "6n_non_embedding", "6n_matmul", "hoffmann", "hoffmann_vocab")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameters of one model, by part.

    embedding: token table.  position: learned position table.  head: unembedding, 0 when it is the token table.
    attention, mlp: of all layers, biases included.  norm: scales and biases of every norm.
    head_matmul: entries of the matrix that makes logits, tied or not.  block_matmul: entries of the blocks' matrices
    that a token is multiplied with.
    """

    embedding: int
    position: int
    head: int
    attention: int
    mlp: int
    norm: int
    head_matmul: int
    block_matmul: int

    @property
    def total(self) -> int:
        """Every stored number."""
        return self.embedding + self.position + self.head + self.attention + self.mlp + self.norm

    @property
    def non_embedding(self) -> int:
        """Without the tables of tokens and positions and the unembedding (Kaplan et al. 2020, arXiv:2001.08361)."""
        return self.attention + self.mlp + self.norm

    @property
    def matmul(self) -> int:
        """What every token is multiplied with: the blocks' matrices and the unembedding, tied or not."""
        return self.head_matmul + self.block_matmul


def counts(config: ModelConfig) -> Counts:
    """The parameters of a model, by part; `total` equals the sizes of its arrays."""
    s = config.sizes
    layers, width, hidden = s["L"], s["D"], s["F"]
    query, key = s["N"] * s["H"], s["K"] * s["H"]
    table = s["V"] * width
    matrices = config.matmul_parameters() - table
    one_mlp = (3 if config.activation == "swiglu" else 2) * layers * width * hidden
    chosen, experts = (1, 1) if config.experts is None else (config.experts_per_token, config.experts)
    router = 0 if config.experts is None else layers * width * experts
    attention_bias, mlp_bias = (query + 2 * key + width, hidden + width) if config.bias else (0, 0)
    mlp_bias = mlp_bias if config.experts is None else 0
    per_norm = width * (2 if config.norm == "layer" else 1)
    return Counts(
        embedding=table,
        position=s["T"] * width if config.positions == "learned" else 0,
        head=0 if config.tied else table,
        attention=matrices - chosen * one_mlp - router + layers * attention_bias,
        mlp=experts * one_mlp + router + layers * mlp_bias,
        norm=(2 * layers + 1) * per_norm,
        head_matmul=table,
        block_matmul=matrices,
    )


def flops_per_token(config: ModelConfig, length: int, convention: str = "exact") -> float:
    """Training FLOPs (forward and backward; a multiply-add is 2) per token of rows of `length` tokens.

    Args:
        config: the model.
        length: tokens of a row (T).
        convention: one of FLOP_CONVENTIONS. exact: 6 x matmul parameters + 12 L N H T / 2, attention to the past alone;
            exact_full: the same with all T keys, as kernels without a causal shortcut compute; 6n_total,
            6n_non_embedding, 6n_matmul: six times those parameters; hoffmann: blocks with softmax and full attention,
            which is what reproduces that paper's table A4; hoffmann_vocab: its formula as printed, with the lookup (as
            a matmul) and the logits.

    Returns:
        FLOPs per token.

    Raises:
        ValueError: unknown convention.

    Source: Hoffmann et al. 2022, arXiv:2203.15556, appendix F; Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
    """
    if convention in ("exact", "exact_full"):
        return config.train_flops_per_token(length, causal=convention == "exact")
    parts = counts(config)
    if convention.startswith("6n_") and convention.removeprefix("6n_") in PARAMETER_CONVENTIONS:
        return 6.0 * getattr(parts, convention.removeprefix("6n_"))
    if convention in ("hoffmann", "hoffmann_vocab"):
        s = config.sizes
        attention = s["L"] * length * s["N"] * (4 * s["H"] + 3)  # scores, weighted sum; softmax costs 3 a score
        vocabulary = 4 * parts.head_matmul if convention == "hoffmann_vocab" else 0
        return 3.0 * (2 * parts.block_matmul + attention + vocabulary)
    raise ValueError(f"FLOP convention {convention!r}: choose one of {', '.join(FLOP_CONVENTIONS)}")


def every_count(config: ModelConfig, length: int, tokens: int) -> dict[str, float]:
    """One row's worth of counts: `params_*` by convention and `flops_*` of a run of `tokens` tokens by convention."""
    parts = counts(config)
    found: dict[str, float] = {f"params_{name}": getattr(parts, name) for name in PARAMETER_CONVENTIONS}
    return found | {f"flops_{name}": flops_per_token(config, length, name) * tokens for name in FLOP_CONVENTIONS}
