"""The best policy there is under a KL penalty, in closed form: what trained policies can be compared with."""

from typing import NamedTuple

import numpy as np


class Optimum(NamedTuple):
    """policy: f64[..., n].  log_z: log normaliser.  objective: mean reward - kl_coefficient x KL, at the optimum."""

    policy: np.ndarray
    log_z: np.ndarray
    objective: np.ndarray


class Value(NamedTuple):
    """What a policy earns: reward (mean), kl (nats from the reference), objective (reward - kl_coefficient x kl)."""

    reward: np.ndarray
    kl: np.ndarray
    objective: np.ndarray


def kl_optimum(reference: np.ndarray, reward: np.ndarray, kl_coefficient: float) -> Optimum:
    """pi* = reference exp(reward / kl_coefficient) / Z, whose objective is kl_coefficient log Z.

    Args:
        reference: f64[..., n], probabilities of the n outcomes.
        reward: f64[..., n], reward of each.
        kl_coefficient: reward units per nat, positive.

    Source: Korbak et al. 2022, arXiv:2205.11275, section 3; Rafailov et al. 2023, arXiv:2305.18290, equation 4.
    """
    if kl_coefficient <= 0:
        raise ValueError(f"kl_coefficient must be positive, got {kl_coefficient}")
    with np.errstate(divide="ignore"):  # an outcome that the reference excludes stays excluded
        logits = np.log(np.asarray(reference, float)) + np.asarray(reward, float) / kl_coefficient
    largest = logits.max(axis=-1, keepdims=True)
    log_z = np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True)) + largest
    return Optimum(np.exp(logits - log_z), log_z[..., 0], kl_coefficient * log_z[..., 0])


def kl_value(policy: np.ndarray, reference: np.ndarray, reward: np.ndarray, kl_coefficient: float) -> Value:
    """What a policy earns under the penalty.

    Args:
        policy: f64[..., n], probabilities.
        reference: f64[..., n], positive where the policy is.
        reward: f64[..., n].
        kl_coefficient: reward units per nat.
    """
    policy, reference = np.asarray(policy, float), np.asarray(reference, float)
    possible = policy > 0
    ratio = np.where(possible, policy, 1.0) / np.where(possible, reference, 1.0)
    mean, kl = np.sum(policy * reward, axis=-1), np.sum(policy * np.log(ratio), axis=-1)
    return Value(mean, kl, mean - kl_coefficient * kl)
