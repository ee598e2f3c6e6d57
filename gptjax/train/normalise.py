"""Gain and bias of a trained reward model: measured once, kept beside its parameters, applied here and nowhere else.

Training never sees them, so the loss does not change; they set the scale and the zero of what PPO is paid in.
"""

from collections.abc import Mapping

import jax
import numpy as np

from gptjax.types import Params


def zero_mean(scores: np.ndarray) -> tuple[float, float]:
    """(gain, bias) = (1, minus the mean), so that these scores have mean 0.

    Args:
        scores: float[n], raw scores of demonstrations.

    Raises:
        ValueError: there are none, or one is not finite.

    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5.
    """
    return 1.0, -float(np.mean(_checked(scores, fewest=1)))


def zero_mean_unit_std(scores: np.ndarray) -> tuple[float, float]:
    """(gain, bias) with which these scores have mean 0 and (population) standard deviation 1.

    Args:
        scores: float[n], raw scores of samples of the reference policy.

    Raises:
        ValueError: there are fewer than two, one is not finite, or all are equal.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.1; lm-human-preferences, `set_reward_norm`.
    """
    scores = _checked(scores, fewest=2)
    deviation = float(np.std(scores))
    if deviation <= 1e-6 * max(1.0, float(np.max(np.abs(scores)))):
        raise ValueError(f"{len(scores)} scores to normalise by are all {scores[0]:.6g}: no gain gives them a spread")
    return 1.0 / deviation, -float(np.mean(scores)) / deviation


def normalised(raw: jax.Array, norm: Mapping[str, jax.Array]) -> jax.Array:
    """Scores in the reward model's own scale: gain x raw + bias, with `reward_gain` and `reward_bias` of `norm`."""
    return norm["reward_gain"] * raw + norm["reward_bias"]


def absorbed(params: Params, norm: Mapping[str, jax.Array]) -> Params:
    """Parameters of a scalar model whose raw values are the normalised ones (the start of a value model)."""
    head_D = norm["reward_gain"] * params["head_D"]
    return params | {"head_D": head_D, "bias_1": normalised(params["bias_1"], norm)}


def _checked(scores: np.ndarray, *, fewest: int) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.size < fewest:
        raise ValueError(f"normalisation needs at least {fewest} scores, got {scores.size}")
    if bad := int(np.sum(~np.isfinite(scores))):
        raise ValueError(f"{bad} of {scores.size} scores to normalise by are not finite: the reward model has diverged")
    return scores
