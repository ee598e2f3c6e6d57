"""PPO's settings."""

from dataclasses import dataclass
from typing import Literal

from gptjax.choices import check_choices, check_numbers

Span = Literal["minibatch", "rollout"]


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """PPO's settings; defaults as in InstructGPT where it states them, else as in lm-human-preferences.

    minibatches: updates per epoch; they divide B, the prompts of a rollout, which are an experiment's batch_size.
    epochs: passes over a rollout.
    response_tokens: R, longest response.  temperature: of sampling and of every log-probability.  Truncated sampling
    (top-k, top-p) is not offered: the ratio would compare two different distributions.
    kl_coefficient: reward units per nat; kl_target, kl_horizon: steer it (None: it stays).
    discount, trace: gamma and lambda of the advantage estimates.  clip, value_clip: PPO's (None: values unclipped).
    value_model: separate (a model of its own) or head (a linear head on the policy's trunk, starting at zero).
    value_coefficient: weight of the value loss.
    missing_end_score: score of a response without end-of-turn (None: its own score minus missing_end_penalty).
    score_clip: largest magnitude of a score, after the missing-end rule (None: unclipped).
    whiten_rewards: scale rewards to standard deviation 1 over a minibatch or a whole rollout, keeping their mean
    (None: leave them).  whiten_advantages: scale and shift them to mean 0 (None: leave them).
    stop_kl: no further update is made on a rollout once k3 between sampling and current policy exceeds 1.5 times this
    (nats per token; None: never).
    average_decay: of the moving average of the policy's weights, which is what a finished run serves (None: none kept).
    importance_cap: weigh tokens by min(trained / sampled probability, this), against a sampler whose numerics differ
    (None: not).  max_lag: rollouts that a policy may have been updated on since it sampled; older ones are refused.
    ptx_coefficient: weight of the pre-training loss (nats per token) in the policy's gradient (0: off).
    ptx_rows: pre-training rows per prompt.
    """

    minibatches: int = 4
    epochs: int = 1
    response_tokens: int = 64
    temperature: float = 1.0
    kl_coefficient: float = 0.02
    kl_target: float | None = None
    kl_horizon: float = 10_000.0
    discount: float = 1.0
    trace: float = 0.95
    clip: float = 0.2
    value_clip: float | None = 0.2
    value_model: Literal["separate", "head"] = "separate"
    value_coefficient: float = 1.0
    missing_end_score: float | None = None
    missing_end_penalty: float = 1.0
    score_clip: float | None = None
    whiten_rewards: Span | None = None
    whiten_advantages: Span | None = "minibatch"
    stop_kl: float | None = None
    average_decay: float | None = None
    importance_cap: float | None = None
    max_lag: int = 0
    ptx_coefficient: float = 0.0
    ptx_rows: int = 1

    def __post_init__(self) -> None:
        check_choices(self, "ppo")
        check_numbers(
            self,
            "ppo",
            at_least_1=("minibatches", "epochs", "response_tokens", "ptx_rows"),
            positive=(
                "temperature",
                "kl_target",
                "kl_horizon",
                "clip",
                "value_clip",
                "score_clip",
                "stop_kl",
                "importance_cap",
            ),
            not_negative=("kl_coefficient", "value_coefficient", "ptx_coefficient", "max_lag"),
            from_0_to_1=("discount", "trace"),
            from_0_below_1=("average_decay",),
        )
        if self.whiten_rewards == "minibatch" and self.whiten_advantages == "rollout":
            raise ValueError(
                "ppo.whiten_rewards 'minibatch' makes each minibatch's advantages anew, which ppo.whiten_advantages "
                "'rollout' has whitened before: set both to the same"
            )

    @property
    def updates(self) -> int:
        """Updates made on one rollout."""
        return self.minibatches * self.epochs
