"""The training state and the batches: frozen pytrees that hold arrays only."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

Params: TypeAlias = Any  # nested dict of arrays
Metrics: TypeAlias = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a resume needs; every leaf lives on the mesh.

    step: i32[], updates made so far.  key: u32[2], root of all randomness of the run (raw threefry key data).
    frozen: parameters that the model uses and the optimizer leaves alone ({} when there are none).
    extra: what a task carries along by name (KL coefficient, reward bias and gain, counters, averaged weights).
    """

    step: jax.Array
    params: Params
    opt_state: Any
    key: jax.Array
    frozen: Params
    extra: dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LmBatch:
    """Rows of one or more packed documents (language modelling) or conversations (supervised fine-tuning).

    tokens_BT: i32.  targets_BT: i32, the token after each one, shifted on the host (masked language modelling: the
    token itself, of which tokens_BT holds the corrupted form; weights_BT is 1 where it was selected).
    segments_BT: i32, 0 = padding, 1..n = document within the row.  positions_BT: i32, restart at 0 in each document.
    weights_BT: f32, weight of each target; 0 where the next token belongs to another document or is padding.
    """

    tokens_BT: Any
    targets_BT: Any
    segments_BT: Any
    positions_BT: Any
    weights_BT: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RewardBatch:
    """Prompts with C ranked candidate responses each; all candidates of a prompt are one batch element.

    tokens_BCT: i32, prompt + response (end-of-turn included if it was emitted), padded on the right.
    lengths_BC: i32, real tokens; 0 = no such candidate.
    ranks_BC: i32, 1 = best, equal ranks are ties; 0 = no such candidate.
    margins_BCC: f32, score difference that candidate i owes to j where it is ranked above, or None.
    """

    tokens_BCT: Any
    lengths_BC: Any
    ranks_BC: Any
    margins_BCC: Any = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RatingBatch:
    """Prompts with C rated responses each.

    tokens_BCT, lengths_BC: as in RewardBatch.
    ratings_BC: f32, 1 to 7.  weights_BC: f32, weight of each rating; 0 = not rated, or no such response.
    """

    tokens_BCT: Any
    lengths_BC: Any
    ratings_BC: Any
    weights_BC: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PackedCandidates:
    """What a reward step takes: all candidates of a RewardBatch or RatingBatch, several to a row.

    tokens_BT, segments_BT, positions_BT: as in LmBatch, with one segment per candidate; B counts rows.
    last_BC: i32, place of each candidate's last token, row x T + column; 0 = no such candidate; B counts prompts.
    Rows n, n + k, n + 2k and so on hold prompts n, n + k, n + 2k, where k is the number of microbatches.
    judged: the batch itself, without its tokens.
    """

    tokens_BT: Any
    segments_BT: Any
    positions_BT: Any
    last_BC: Any
    judged: RewardBatch | RatingBatch


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PreferenceBatch:
    """Pairs (C = 2) of responses to one prompt, the chosen one first, with what the reference thinks of them.

    tokens_BCT: i32, prompt + response (end-of-turn included if it was emitted), padded on the right.
    targets_BCT: i32, the token after each one, shifted on the host.
    lengths_BC: i32, real tokens; 0 = filler, counted nowhere.  prompt_lengths_B: i32, tokens before the response.
    logp_ref_BC: f32, log-probability of each response under the reference (nats); it travels with its pair.
    """

    tokens_BCT: Any
    targets_BCT: Any
    lengths_BC: Any
    prompt_lengths_B: Any
    logp_ref_BC: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Responses before a rollout is made of them, one to each prompt (GRPO: one to each sample of a group, in order).

    tokens_BR: i32.  mask_BR: bool, true up to and including the end-of-turn token.
    logp_sampler_BR: f32 (nats), as the sampler had them while it drew.
    scores_B: f32, what a program says of them, or None where a reward model is to be asked.
    """

    tokens_BR: Any
    mask_BR: Any
    logp_sampler_BR: Any
    scores_B: Any = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Prompts to answer, padded on the left so that every response begins in the same column.

    tokens_BP: i32.  lengths_B: i32, real tokens, the last `lengths_B[b]` columns.
    drawn: the answers, where they were given and scored on the host, or None.
    """

    tokens_BP: Any
    lengths_B: Any
    drawn: Drawn | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PpoBatch:
    """What a rollout starts from: prompts, and pre-training rows to mix into its updates (PPO-ptx) or None."""

    prompts: PromptBatch
    pretrain: LmBatch | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Responses of the policy with all that a PPO update needs; entry r of an array [B, R] belongs to response token r.

    tokens_BT, segments_BT, positions_BT: i32[B, P + R], left-padded prompt, then the response.
    mask_BR: bool, true up to and including the end-of-turn token; all false for a response without a finite score.
    logp_old_BR, logp_ref_BR: f32 (nats), under the policy that sampled and under the reference, both by the forward
    pass that trains.
    values_BR: f32 (reward units), the critic's estimate before each token.
    rewards_BR, advantages_BR, returns_BR: f32 (reward units), whitened if that is done over whole rollouts.
    scores_B: f32, reward-model score after normalisation, the missing-end rule and clipping.  ended_B: bool.
    pretrain: rows for PPO-ptx, or None.
    logp_sampler_BR: f32 (nats), as the sampler had them while it drew, or None.
    version: i32[], rollouts that the sampling policy had been updated on.
    """

    tokens_BT: Any
    segments_BT: Any
    positions_BT: Any
    mask_BR: Any
    logp_old_BR: Any
    logp_ref_BR: Any
    values_BR: Any
    rewards_BR: Any
    advantages_BR: Any
    returns_BR: Any
    scores_B: Any
    ended_B: Any
    pretrain: LmBatch | None = None
    logp_sampler_BR: Any = None
    version: Any = 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GroupRollout:
    """C responses to each of B prompts, a group along C; a minibatch is cut along B, so that no group is broken.

    tokens_BCT, segments_BCT, positions_BCT: i32[B, C, P + R], left-padded prompt, then the response.
    mask_BCR: bool, true up to and including the end-of-turn token.
    logp_old_BCR, logp_ref_BCR: f32 (nats), under the policy that sampled and under the reference.
    scores_BC: f32, reward-model score after normalisation and the truncation rule.  rewards_BC: f32, what the
    advantages are made of: the score, less the KL if that is in the reward.
    advantages_BC: f32.  counted_BC: bool, samples that enter the loss.  ended_BC: bool.
    """

    tokens_BCT: Any
    segments_BCT: Any
    positions_BCT: Any
    mask_BCR: Any
    logp_old_BCR: Any
    logp_ref_BCR: Any
    scores_BC: Any
    rewards_BC: Any
    advantages_BC: Any
    counted_BC: Any
    ended_BC: Any
