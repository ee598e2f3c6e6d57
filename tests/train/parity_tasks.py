"""Objectives for the parity matrix: a small instance of each, its optimizer, its batch and, if it has one, its rollout.

A task is a function of the model's switches: (optimizer, init, step, make_batch, gather or None).
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model, value_head
from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.train.dpo import DpoConfig, dpo_step
from gptjax.train.group_rollout import collect_groups
from gptjax.train.grpo import GrpoConfig, GrpoLoss, RlooLoss, grpo_step
from gptjax.train.lm import lm_step
from gptjax.train.mlm import mlm_step
from gptjax.train.ppo import PpoConfig, initial_extra, ppo_step
from gptjax.train.reference import upper_layers, with_frozen_layers
from gptjax.train.reward import RewardConfig, reward_step
from gptjax.train.rollout import collect
from gptjax.train.sft import sft_step
from gptjax.train.update import initial_state
from gptjax.types import (
    GroupRollout,
    LmBatch,
    PpoBatch,
    PreferenceBatch,
    PromptBatch,
    RatingBatch,
    RewardBatch,
)

SIZES = {"vocab_size": 64, "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "hidden": 32, "max_length": 32}
ADAMW = OptimizerConfig(peak_lr=1e-2, weight_decay=0.1, eps=1e-3)
PPO = PpoConfig(minibatches=2, epochs=2, response_tokens=8, kl_coefficient=0.1, ptx_coefficient=0.5, average_decay=0.9)
HEAD = replace(
    PPO, value_model="head", value_coefficient=0.1, whiten_rewards="minibatch", stop_kl=1.0, importance_cap=2.0
)


def lm_batch(rng, rows=16, length=16):
    segments = np.where(np.arange(length) < 9, 1, np.where(np.arange(length) < 14, 2, 0))[None].repeat(rows, 0)
    positions = np.where(np.arange(length) < 9, np.arange(length), np.maximum(np.arange(length) - 9, 0))
    last = (np.arange(length) == 8) | (np.arange(length) >= 13)
    return LmBatch(
        tokens_BT=rng.integers(0, 64, (rows, length), np.int32),
        targets_BT=rng.integers(0, 64, (rows, length), np.int32),
        segments_BT=segments.astype(np.int32),
        positions_BT=positions[None].repeat(rows, 0).astype(np.int32),
        weights_BT=np.where(last, 0.0, 1.0)[None].repeat(rows, 0).astype(np.float32),
    )


def reward_batch(rng, prompts=16, candidates=4, length=12):
    lengths = rng.integers(3, length + 1, (prompts, candidates), np.int32)
    lengths[:, -1] *= rng.integers(0, 2, prompts, np.int32)
    ranks = np.where(lengths > 0, rng.integers(1, 4, lengths.shape), 0)
    tokens = rng.integers(0, 64, (prompts, candidates, length), np.int32)
    margins = rng.uniform(0, 1, (prompts, candidates, candidates)).astype(np.float32)
    return RewardBatch(tokens_BCT=tokens, lengths_BC=lengths, ranks_BC=ranks.astype(np.int32), margins_BCC=margins)


def rating_batch(rng):
    ranked = reward_batch(rng)
    ratings = rng.uniform(1, 7, ranked.ranks_BC.shape).astype(np.float32)
    weights = np.where(ranked.ranks_BC > 1, 1.5, 0.0).astype(np.float32)
    return RatingBatch(
        tokens_BCT=ranked.tokens_BCT, lengths_BC=ranked.lengths_BC, ratings_BC=ratings, weights_BC=weights
    )


def state_of(params, tx):
    extra = initial_extra(PPO, params["policy"]) if "policy" in params else {}
    return initial_state(params, tx, jax.random.key(7), **extra)


def lm_task(step, **own):
    def build(switches):
        config = ModelConfig(**SIZES, **own, **switches)
        model = language_model(config)
        tx = optimizer(ADAMW, 10, model.roles, model.letters)
        run = partial(step, model=model, optimizer=tx, loss_chunks=2)
        return tx, model.init, run, lm_batch, None

    return build


def reward_task(make_batch, **options):
    def build(switches):
        model = scalar_model(ModelConfig(**SIZES, **switches))
        tx = optimizer(ADAMW, 10, model.roles, model.letters)
        step = partial(reward_step, model=model, optimizer=tx, config=RewardConfig(**options))
        return tx, model.init, step, make_batch, None

    return build


def ppo_task(switches, settings=PPO, frozen_layers=0):
    sizes = ModelConfig(**SIZES, **switches)
    policy, scalar = language_model(sizes), scalar_model(sizes)
    head = value_head(sizes) if settings.value_model == "head" else None
    models = {"policy": policy, "value": head or scalar}
    roles, letters = ({name: getattr(m, field) for name, m in models.items()} for field in ("roles", "letters"))
    tx = optimizer(ADAMW, 10, roles, letters)
    if frozen_layers:
        tx = with_frozen_layers(tx, policy, frozen_layers)

    def init(key):
        return {"policy": policy.init(key), "value": models["value"].init(jax.random.fold_in(key, 1))}

    def batch(rng):
        lengths = rng.integers(1, 9, 16).astype(np.int32)
        prompts = PromptBatch(tokens_BP=rng.integers(0, 64, (16, 8), np.int32), lengths_B=lengths)
        return PpoBatch(prompts=prompts, pretrain=lm_batch(rng))

    def gather(state, host_batch):
        reward = scalar.init(jax.random.key(3))
        reference = policy.init(jax.random.key(5))
        frozen = {
            "reference": upper_layers(reference, policy, frozen_layers) if frozen_layers else reference,
            "reward": reward,
            "reward_gain": jnp.asarray(1.5),
            "reward_bias": jnp.asarray(-0.1),
        }
        key = jax.random.key(11)
        return collect(state, frozen, host_batch, key, **about, end_id=3)

    about = {"policy": policy, "scalar": scalar, "head": head, "config": settings}
    step = partial(ppo_step, **about, optimizer=tx)
    return tx, init, step, batch, gather


def dpo_task(switches):
    model = language_model(ModelConfig(**SIZES, **switches))
    tx = optimizer(ADAMW, 10, model.roles, model.letters)

    def batch(rng):
        lengths = rng.integers(6, 13, (16, 2), np.int32)
        tokens = rng.integers(0, 64, (16, 2, 13), np.int32)
        return PreferenceBatch(
            tokens_BCT=tokens[:, :, :-1],
            targets_BCT=tokens[:, :, 1:],
            lengths_BC=lengths * rng.integers(0, 2, (16, 1), np.int32),
            prompt_lengths_B=rng.integers(2, 6, 16, np.int32),
            logp_ref_BC=rng.normal(-30, 1, (16, 2)),
        )

    return tx, model.init, partial(dpo_step, model=model, optimizer=tx, config=DpoConfig(loss_chunks=3)), batch, None


def group_rollout(rng, prompts=16, group=3, length=16, responses=8):
    """What a rollout might have been: random answers, log-probabilities and advantages."""
    start, end = rng.integers(0, 8, (prompts, 1, 1)), 9 + rng.integers(0, 8, (prompts, group, 1))
    real_BCT = (np.arange(length) >= start) & (np.arange(length) < end)
    logp_old, logp_ref = rng.normal(-4, 0.3, (2, prompts, group, responses))
    scores, advantages = rng.normal(size=(2, prompts, group))
    return GroupRollout(
        tokens_BCT=rng.integers(0, 64, (prompts, group, length), np.int32),
        segments_BCT=real_BCT.astype(np.int32),
        positions_BCT=np.maximum(np.cumsum(real_BCT, axis=2) - 1, 0).astype(np.int32),
        mask_BCR=real_BCT[:, :, -responses:],
        logp_old_BCR=logp_old,
        logp_ref_BCR=logp_ref,
        scores_BC=scores,
        rewards_BC=scores,
        advantages_BC=advantages,
        counted_BC=rng.random((prompts, group)) < 0.8,
        ended_BC=rng.random((prompts, group)) < 0.5,
    )


def grpo_task(loss, *, sampled=False):
    """Three updates on a given rollout, or on a sampled one."""
    settings = GrpoConfig(group_size=3, minibatches=2, epochs=2, response_tokens=8, kl_coefficient=0.1, loss=loss)

    def build(switches):
        sizes = ModelConfig(**SIZES, **switches)
        policy, scalar = language_model(sizes), scalar_model(sizes)
        tx = optimizer(ADAMW, 10, policy.roles, policy.letters)
        step = partial(grpo_step, policy=policy, optimizer=tx, config=settings)

        def prompts(rng):
            lengths = rng.integers(1, 9, 16).astype(np.int32)
            return PromptBatch(tokens_BP=rng.integers(0, 64, (16, 8), np.int32), lengths_B=lengths)

        def gather(state, batch):
            frozen = {"reference": policy.init(jax.random.key(5)), "reward": scalar.init(jax.random.key(3))}
            frozen |= {"reward_gain": jnp.asarray(1.5), "reward_bias": jnp.asarray(-0.1)}
            key = jax.random.key(11)
            return collect_groups(state, frozen, batch, key, policy=policy, scalar=scalar, config=settings, end_id=3)

        return tx, policy.init, step, prompts if sampled else group_rollout, gather if sampled else None

    return build


SEQUENCE_GRPO = GrpoLoss(aggregation="sequence", kl="k3_times_ratio")
TASKS = {
    "lm": lm_task(lm_step),
    "mlm": lm_task(mlm_step),
    "sft": lm_task(sft_step),
    "reward": reward_task(reward_batch, gap_margins=(0.1, 0.3), label_smoothing=0.1, center=0.01),
    "dpo": dpo_task,
    "ppo": ppo_task,
    "grpo": grpo_task(SEQUENCE_GRPO, sampled=True),
}
VARIANTS = {
    "lm gpt": lm_task(lm_step, positions="learned", norm="layer", activation="gelu", bias=True, tied=False),
    "sft dropout": lm_task(sft_step, dropout=0.1),
    "reward choice": reward_task(reward_batch, objective="choice"),
    "reward rating": reward_task(rating_batch, objective="rating"),
    "ppo head": partial(ppo_task, settings=HEAD, frozen_layers=1),
    "grpo given": grpo_task(SEQUENCE_GRPO),
    "rloo": grpo_task(RlooLoss(), sampled=True),
}
