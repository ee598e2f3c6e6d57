"""Scalar heads: on a Transformer of its own (reward and value model), and on the hidden states of another model."""

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.model.config import ModelConfig
from gptjax.model.parameters import declare, use
from gptjax.model.transformer import Transformer
from gptjax.model_types import RouterSums


class ScalarTransformer(nnx.Module):
    """One number per position instead of logits.

    The head starts at N(0, 1 / (D + 1)) with bias 0, as in Ziegler et al.'s code.
    """

    def __init__(self, config: ModelConfig):
        self.trunk = Transformer(config)
        self.head_D = declare(config, "D", "matrix", std=(config.width + 1) ** -0.5)
        self.bias_1 = declare(config, "1", "bias")

    def __call__(
        self, tokens_BT: jax.Array, segments_BT: jax.Array, positions_BT: jax.Array
    ) -> tuple[jax.Array, RouterSums | None]:
        """f32[B, T], the scalar at each position, and the trunk's routers' sums if it has experts."""
        h_BTD, router = self.trunk(tokens_BT, segments_BT, positions_BT)
        return _scalars(h_BTD, self.head_D, self.bias_1), router


class ValueHeadLayer(nnx.Module):
    """One number per position from hidden states; it starts at zero, so that no value is better than another."""

    def __init__(self, config: ModelConfig):
        self.head_D = declare(config, "D", "matrix")
        self.bias_1 = declare(config, "1", "bias")

    def __call__(self, h_BTD: jax.Array) -> jax.Array:
        """f32[B, T]."""
        return _scalars(h_BTD, self.head_D, self.bias_1)


def _scalars(h_BTD: jax.Array, head_D: nnx.Param, bias_1: nnx.Param) -> jax.Array:
    h_BTD = h_BTD.astype(jnp.promote_types(h_BTD.dtype, jnp.float32))
    values_BT = jnp.einsum("BTD,D->BT", h_BTD, use(head_D, "D", h_BTD.dtype))
    return values_BT + use(bias_1, "1", h_BTD.dtype)[None]
