"""The MLP of a block as a mixture of experts, declared for all layers at once."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from gptjax import dims
from gptjax.model.config import ModelConfig
from gptjax.model.parameters import declare, use
from gptjax.model_types import RouterSums
from gptjax.nn.experts import Expert, chosen_experts, mixture, router_losses


class Moe(nnx.Module):
    """A linear router in at least float32, and experts without biases.

    The router starts at N(0, 0.02^2), near an even choice; experts start as an MLP of their own would.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        s = config.sizes
        std_in, std_out = s["D"] ** -0.5, s["F"] ** -0.5 / (2 * (config.mup_base_layers or s["L"])) ** 0.5
        self.router_DE = declare(config, "LDE", "matrix", std=0.02)
        self.w_in_EDF = declare(config, "LEDF", "matrix", std=std_in)
        self.w_gate_EDF = declare(config, "LEDF", "matrix", std=std_in) if config.activation == "swiglu" else None
        self.w_out_EFD = declare(config, "LEFD", "matrix", std=std_out)

    def __call__(self, h_BTD: jax.Array, real_BT: jax.Array, *, decoding: bool) -> tuple[jax.Array, RouterSums]:
        """The weighted sum of each token's experts; padding goes to none."""
        config, dtype = self.config, h_BTD.dtype
        logits_BTE = self._logits(h_BTD, decoding)
        chosen_BTC, weights_BTC = chosen_experts(logits_BTE, config.experts_per_token)
        gate_EDF = None if self.w_gate_EDF is None else use(self.w_gate_EDF, "EDF", dtype)
        expert = Expert(use(self.w_in_EDF, "EDF", dtype), gate_EDF, use(self.w_out_EFD, "EFD", dtype))
        out_BTD, dropped = mixture(
            h_BTD,
            chosen_BTC,
            weights_BTC,
            real_BT,
            expert,
            activation=config.activation,
            capacity_factor=config.capacity_factor,
            decoding=decoding,
        )
        balance_B, z_B = router_losses(logits_BTE, chosen_BTC, real_BT)
        balance, z = jnp.sum(balance_B), jnp.sum(z_B)
        sums = RouterSums(
            loss=config.balance_coefficient * balance + config.router_z_coefficient * z,
            balance=balance,
            z=z,
            dropped=dropped,
            choices=config.experts_per_token * jnp.sum(real_BT, dtype=jnp.int32),
        )
        residual = dims.act_spec("BTD", decoding=True) if decoding else dims.residual_spec(spread=config.spread_norms)
        return reshard(out_BTD, residual), sums

    def _logits(self, h_BTD: jax.Array, decoding: bool) -> jax.Array:
        """Of all experts on every device: rows are spread over `expert` too, so the router's own E is gathered."""
        wide = jnp.promote_types(h_BTD.dtype, jnp.float32)
        router_DE = reshard(self.router_DE.get_value().astype(wide), PartitionSpec(None, None))
        h_BTD = h_BTD.astype(wide)
        return jnp.einsum("BTD,DE->BTE", h_BTD, router_DE, out_sharding=dims.act_spec("BTE", decoding=decoding))
