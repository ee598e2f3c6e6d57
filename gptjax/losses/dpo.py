"""Direct preference optimisation and its relatives: losses on pairs of responses, without a reward model."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

DpoKind: TypeAlias = Literal["sigmoid", "robust", "ipo"]


def dpo_loss(
    logp_BC: jax.Array,
    logp_ref_BC: jax.Array,
    mask_B: jax.Array,
    *,
    beta: float,
    kind: DpoKind = "sigmoid",
    label_smoothing: float = 0.0,
    lengths_BC: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Direct preference optimisation on pairs (C = 2) of a chosen and a rejected response, in this order.

    With h the log-ratio of policy to reference of the chosen response minus that of the rejected one:
    sigmoid: -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h), with s = label_smoothing (cDPO; DPO at 0);
    robust: (-(1 - s) log sigmoid(beta h) + s log sigmoid(-beta h)) / (1 - 2 s), unbiased if labels flip at rate s;
    ipo: (h - 1 / (2 beta))^2.

    Args:
        logp_BC: f32[B, 2], log-probability of the whole response, summed over its tokens (nats), under the policy.
        logp_ref_BC: f32[B, 2], under the reference.
        mask_B: bool[B], pairs that count; what stands elsewhere (NaN included) has no influence.
        beta: strength of the pull to the reference; ipo: 1 / (2 beta) is the margin aimed at (nats).
        kind: see above.
        label_smoothing: s, share of labels taken to be wrong, in [0, 0.5); ipo has none.
        lengths_BC: i32[B, 2], tokens of each response: log-ratios are divided by them first. None: they stay sums.

    Returns:
        (loss_sum, n_pairs, aux); aux holds sums over the pairs: margin (beta h), correct (margin above 0, a tie is
        half), ties (margins that rounding of the log-probabilities explains), logp_chosen, logp_rejected,
        reward_chosen, reward_rejected (beta times the log-ratio).

    Raises:
        ValueError: beta or label_smoothing lies outside its range, or ipo is given label_smoothing.

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7; cDPO: Mitchell 2023, "A note on DPO with noisy
    preferences"; robust: Chowdhury et al. 2024, arXiv:2403.00409; ipo: Azar et al. 2023, arXiv:2310.12036, equation 17.
    """
    check_dpo(beta, kind, label_smoothing)
    logp_BC, logp_ref_BC = (jnp.where(mask_B[:, None], x_BC, 0.0) for x_BC in (logp_BC, logp_ref_BC))
    ratio_BC = logp_BC - logp_ref_BC
    if lengths_BC is not None:
        ratio_BC = ratio_BC / jnp.maximum(lengths_BC, 1)
    h_B = ratio_BC[:, 0] - ratio_BC[:, 1]
    loss_B = _pair_losses(h_B, beta, kind, label_smoothing)
    rounding_B = 4.0 * jnp.finfo(h_B.dtype).eps * jnp.sum(jnp.abs(logp_BC) + jnp.abs(logp_ref_BC), axis=1)
    tie_B = jnp.abs(h_B) <= rounding_B
    per_pair = {
        "margin": beta * h_B,
        "correct": jnp.where(tie_B, 0.5, jnp.where(h_B > 0, 1.0, 0.0)),
        "ties": tie_B,
        "logp_chosen": logp_BC[:, 0],
        "logp_rejected": logp_BC[:, 1],
        "reward_chosen": beta * ratio_BC[:, 0],
        "reward_rejected": beta * ratio_BC[:, 1],
    }
    aux = {name: jnp.sum(jnp.where(mask_B, x_B, 0)) for name, x_B in per_pair.items()}
    return jnp.sum(jnp.where(mask_B, loss_B, 0.0)), jnp.sum(mask_B), aux


def _pair_losses(h_B: jax.Array, beta: float, kind: DpoKind, label_smoothing: float) -> jax.Array:
    if kind == "ipo":
        return jnp.square(h_B - 1.0 / (2.0 * beta))
    right_B, wrong_B = -jax.nn.log_sigmoid(beta * h_B), -jax.nn.log_sigmoid(-beta * h_B)
    if kind == "robust":
        return ((1.0 - label_smoothing) * right_B - label_smoothing * wrong_B) / (1.0 - 2.0 * label_smoothing)
    return (1.0 - label_smoothing) * right_B + label_smoothing * wrong_B


def check_dpo(beta: float, kind: DpoKind, label_smoothing: float) -> None:
    """Raise ValueError for settings that `dpo_loss` has no meaning for."""
    if not beta > 0.0:
        raise ValueError(f"dpo.beta must be positive, got {beta}")
    if kind not in ("sigmoid", "robust", "ipo"):
        raise ValueError(f"dpo.kind must be sigmoid, robust or ipo, got {kind!r}")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"dpo.label_smoothing must lie in [0, 0.5), got {label_smoothing}")
    if kind == "ipo" and label_smoothing:
        raise ValueError(f"dpo.label_smoothing {label_smoothing} has no meaning for dpo.kind 'ipo': set it to 0")
