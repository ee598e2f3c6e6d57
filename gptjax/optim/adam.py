"""Adam as TensorFlow 1 computes it."""

import jax
import jax.numpy as jnp
import optax

from gptjax.types import Params


def scale_by_adam_tf(*, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam whose epsilon is added before bias correction ("epsilon hat"): early steps are smaller.

    The step is sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), which is optax.scale_by_adam with the epsilon of step
    t divided by sqrt(1 - b2^t): at b2 .999 the first one is 32 times as large.

    Args:
        b1: decay of the gradient average m.
        b2: decay of the squared-gradient average v.
        eps: added to sqrt(v).

    Source: Kingma and Ba 2015, arXiv:1412.6980, end of section 2; "The N implementation details of RLHF with PPO".
    """

    def update(
        updates: Params, state: optax.ScaleByAdamState, params: Params | None = None
    ) -> tuple[Params, optax.ScaleByAdamState]:
        del params
        count = jnp.asarray(state.count) + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)

        def step(m, v):
            t = jnp.asarray(count, m.dtype)
            return jnp.sqrt(1 - b2**t) / (1 - b1**t) * m / (jnp.sqrt(v) + eps)

        return jax.tree.map(step, mu, nu), optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)  # type: ignore[arg-type]
