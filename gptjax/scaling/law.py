"""The parametric law L = E + A / N^alpha + B / D^beta and what follows from it for a compute budget."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

PARAMETERS = ("E", "A", "alpha", "B", "beta")


@dataclass(frozen=True, kw_only=True)
class Law:
    """Loss (nats per token) of a model of N parameters after D tokens, one epoch at most.

    Each field is a float, or f64[R] for R laws at once (bootstrap draws); methods then return a value for each.

    E: loss that no size and no data removes (nats).  A, alpha: of the term that N removes.  B, beta: of the term that D
    removes.

    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 2.
    """

    E: Any
    A: Any
    alpha: Any
    B: Any
    beta: Any

    def loss(self, n: Any, d: Any) -> Any:
        """Loss at N parameters and D tokens, which broadcast against the fields."""
        return self.E + self.A * np.power(1.0 / n, self.alpha) + self.B * np.power(1.0 / d, self.beta)

    @property
    def size_exponent(self) -> Any:
        """a of N*(C) ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: Any, flops_per_parameter_token: Any = 6.0) -> tuple[Any, Any]:
        """(N*, D*), the size and tokens of least loss among all that cost `flops` = k N D.

        Args:
            flops: budget.
            flops_per_parameter_token: k; 6 when C is counted as 6 N D.
        """
        product = np.asarray(flops, np.float64) / flops_per_parameter_token
        log_ratio = np.log(self.alpha * self.A) - np.log(self.beta * self.B)
        total = np.asarray(self.alpha) + self.beta
        n = np.exp((log_ratio + self.beta * np.log(product)) / total)
        return n, product / n

    def tokens_for(self, n: Any, loss: Any) -> Any:
        """Tokens after which N parameters reach `loss`; infinity if they never do."""
        rest = np.asarray(loss - self.E - self.A * np.power(1.0 / n, self.alpha), np.float64)
        with np.errstate(over="ignore"):
            return np.where(rest > 0, np.power(self.B / np.maximum(rest, 1e-300), 1.0 / np.asarray(self.beta)), np.inf)

    def asdict(self) -> dict[str, float]:
        """The parameters of a single law by name."""
        return {name: float(getattr(self, name)) for name in PARAMETERS}

    @classmethod
    def of(cls, theta: np.ndarray) -> "Law":
        """The law, or R laws, of f64[..., 5] in the order of PARAMETERS."""
        return cls(**{name: theta[..., i] for i, name in enumerate(PARAMETERS)})

    @property
    def array(self) -> np.ndarray:
        """f64[..., 5] in the order of PARAMETERS."""
        return np.stack([np.asarray(getattr(self, name), np.float64) for name in PARAMETERS], axis=-1)


class Solution(NamedTuple):
    """Laws [R] of R fits, with objective [R], and how the search went.

    screened, polished: starts.  converged: of the polished, those within a millionth of the best objective.
    condition [R]: of the problem at the solution (two-dimensional where E, A and B are projected out, else of five).
    gradient [R]: its norm over the objective's scale, or per run (0 at a vertex of absolute deviations, where there is
    none).
    """

    law: Law
    objective: np.ndarray
    condition: np.ndarray
    gradient: np.ndarray
    screened: int
    polished: int = 1
    converged: int = 1
