"""How a module declares a parameter and how it takes one into use."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard

from gptjax import dims
from gptjax.model.config import ModelConfig
from gptjax.nn.gather import gathered

Role = Literal["matrix", "bias", "norm", "embedding"]


def declare(config: ModelConfig, letters: str, role: Role, *, mean: float = 0.0, std: float = 0.0) -> nnx.Param:
    """A parameter without a value yet: its shape, layout letters, role and initial distribution."""
    dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
    struct = jax.ShapeDtypeStruct(dims.shape(letters, config.sizes), dtype)
    return nnx.Param(struct, letters=letters, role=role, mean=mean, std=std)


def use(param: nnx.Param, letters: str, dtype: Any, *, decoding: bool = False) -> jax.Array:
    """The parameter in the compute dtype, gathered over `fsdp` (cast first: half the bytes travel)."""
    value = param.get_value().astype(dtype)
    if len(letters) == 1 or "E" in letters:
        # scales and biases meet activations entry by entry, where "reduced" is not allowed; experts have rows of others
        return reshard(value, dims.gathered_spec(letters, value.shape))
    return gathered(value, letters, decoding=decoding)
