"""What a mixture of experts adds to every objective: its routers' losses and what they did."""

import jax
import jax.numpy as jnp

from gptjax.model_types import RouterSums
from gptjax.types import Metrics


def router_loss(router: RouterSums | None, rows: int) -> jax.Array | float:
    """The routers' losses as a mean over the `rows` rows of the whole batch (empty ones cost 0); 0 without experts."""
    return 0.0 if router is None else router.loss / rows


def router_metrics(router: RouterSums | None, rows: int) -> Metrics:
    """balance (1: all experts are used alike), z (nats squared) and the share of choices that found no room."""
    if router is None:
        return {}
    return {
        "router/balance": router.balance / rows,
        "router/z_nats2": router.z / rows,
        "router/dropped_fraction": router.dropped / jnp.maximum(router.choices, 1),
    }
