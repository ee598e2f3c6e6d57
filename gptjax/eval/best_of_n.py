"""Best-of-n: what choosing the answer with the highest proxy reward out of n gains, and what it costs in KL."""

import math

import numpy as np


def best_of_n_kl(n: int) -> float:
    """KL of the best-of-n distribution from the one sampled, in nats: log n - (n - 1) / n, an upper bound with ties.

    Source: Stiennon et al. 2020, arXiv:2009.01325, appendix G.3.
    """
    return math.log(n) - (n - 1) / n


def best_of_n(proxy_BN: np.ndarray, value_BN: np.ndarray, n: int) -> float:
    """Expected value of the sample with the highest proxy out of n, estimated without bias from N >= n samples.

    The i-th smallest proxy of N (from 1) is the best of a random n with probability C(i - 1, n - 1) / C(N, n).

    Args:
        proxy_BN: float[B, N], proxy reward of N samples for each of B prompts.
        value_BN: float[B, N], what to average (gold, or the proxy itself).
        n: size of the choice.

    Raises:
        ValueError: n lies outside 1..N.

    Source: Nakano et al. 2021, arXiv:2112.09332, appendix I.
    """
    total = proxy_BN.shape[1]
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} cannot be estimated from {total} samples")
    weights_N = np.array([math.comb(i - 1, n - 1) for i in range(1, total + 1)], float) / math.comb(total, n)
    order_BN = np.argsort(proxy_BN, axis=1, kind="stable")
    return float(np.mean(np.take_along_axis(value_BN, order_BN, axis=1) @ weights_N))
