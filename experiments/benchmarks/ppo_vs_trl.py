"""One PPO iteration of gptjax and of TRL's PPOTrainer, by turns in one run on the same CPU.

    pip install -e '.[test,peers]'
    python experiments/benchmarks/ppo_vs_trl.py

An iteration: a rollout of 64 prompts (64 tokens) with 64 new tokens each, sampled at temperature 1 and none ended
early, scored by a reward model, and 4 minibatches x 4 epochs of updates of a policy and a separate value model. All
models are GPT-2-style with 2 layers, D = 128, 4 heads and 1,024 tokens, float32, random weights, without dropout.
The script counts tokens and updates on both sides and fails if either did less. TRL runs without gradient
checkpointing and with one forward pass per minibatch: its fastest settings here.
Last result: docs/log.md.
"""
# pyright: reportMissingImports=false

import argparse
import contextlib
import sys
import tempfile
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from datasets import Dataset
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel
from trl_peer import ForwardTokens, Sizes, Turns, report, use_cores

from gptjax.model.pure import language_model, scalar_model
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.train.ppo import initial_extra, ppo_step
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.rollout import collect
from gptjax.train.update import initial_state
from gptjax.types import PpoBatch, PromptBatch

LEARNING_RATE, KL_COEFFICIENT = 1e-5, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="timed turns of each side")
    parser.add_argument("--warmup", type=int, default=2, help="turns before, not timed")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args()
    use_cores(args.cores)
    sizes = Sizes(length=args.prompt_tokens + args.new_tokens)
    prompts_BP = np.random.default_rng(0).integers(0, sizes.vocabulary, (args.prompts, args.prompt_tokens))
    ours = OurIteration(args, sizes, prompts_BP)
    turns = Turns(ours, args.warmup)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(args, sizes, prompts_BP, turns, folder)
        counted = ForwardTokens()
        watched = {"policy": trainer.policy_model, "reference": trainer.ref_model, "value": trainer.value_model}
        for name, module in (watched | {"reward": trainer.reward_model}).items():
            counted.watch(module.transformer, name)
        counted.watch_updates(trainer.optimizer.optimizer)
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    iterations = args.rounds + args.warmup
    done = {"gptjax": ours.done(iterations), "trl": trl_done(args, counted, iterations)}
    expected = {
        "new_tokens": args.prompts * args.new_tokens,
        "updates": args.minibatches * args.epochs,
        "trained_tokens": args.epochs * args.prompts * (args.prompt_tokens + args.new_tokens),
    }
    for side, figures in done.items():
        if figures != expected:
            raise SystemExit(f"{side} did {figures} in an iteration instead of {expected}")
    report("PPO iteration", turns, predicted_flops(args, sizes), expected, args.json, goal=3)


class OurIteration:
    """One rollout and its updates with gptjax, on one device; waits for the result."""

    def __init__(self, args: Any, sizes: Sizes, prompts_BP: np.ndarray):
        self.args = args
        self.config = PpoConfig(
            minibatches=args.minibatches,
            epochs=args.epochs,
            response_tokens=args.new_tokens,
            kl_coefficient=KL_COEFFICIENT,
            missing_end_penalty=0.0,
            whiten_advantages="rollout",
        )
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        policy, scalar = language_model(sizes.gptjax()), scalar_model(sizes.gptjax())
        optimizer = optax.adamw(LEARNING_RATE, weight_decay=0.0)
        common = {"policy": policy, "scalar": scalar, "config": self.config}
        self.collect = jax.jit(partial(collect, **common, end_id=-1))  # no token ends a response
        self.step = jax.jit(partial(ppo_step, **common, optimizer=optimizer), donate_argnums=0)
        with jax.set_mesh(self.mesh):
            self.state, self.frozen_models = jax.jit(partial(beginning, policy, scalar, optimizer, self.config))(
                jax.random.key(0)
            )
            lengths_B = np.full(args.prompts, args.prompt_tokens, np.int32)
            prompts = PromptBatch(tokens_BP=prompts_BP.astype(np.int32), lengths_B=lengths_B)
            self.batch = put(PpoBatch(prompts=prompts), self.mesh)
        self.new_tokens = self.trained_tokens = 0

    def __call__(self) -> None:
        with jax.set_mesh(self.mesh):
            rollout = self.collect(self.state, self.frozen_models, self.batch, self.key())
            for _ in range(self.config.updates):
                self.state, _ = self.step(self.state, rollout)
            jax.block_until_ready(self.state)
        self.new_tokens += int(rollout.mask_BR.sum())
        self.trained_tokens += rollout.tokens_BT.size * self.config.epochs

    def key(self) -> jax.Array:
        """Another one for each rollout."""
        return jax.random.fold_in(jax.random.key(1), self.new_tokens)

    def done(self, iterations: int) -> dict[str, float]:
        return {
            "new_tokens": self.new_tokens / iterations,
            "updates": int(self.state.extra["updates_made"]) / iterations,
            "trained_tokens": self.trained_tokens / iterations,
        }


def beginning(policy, scalar, optimizer, config, key):
    """(state, frozen models) with random weights."""
    keys = jax.random.split(key, 4)
    params = {"policy": policy.init(keys[0]), "value": scalar.init(keys[1])}
    state = initial_state(params, optimizer, keys[3], **initial_extra(config, params["policy"]))
    reward = {"reward": scalar.init(keys[2]), "reward_gain": jnp.ones(()), "reward_bias": jnp.zeros(())}
    return state, reward | {"reference": jax.tree.map(jnp.copy, params["policy"])}


def trl_trainer(args: Any, sizes: Sizes, prompts_BP: np.ndarray, turns: Turns, folder: str) -> Any:
    from trl.experimental.ppo import (
        PPOConfig,
        PPOTrainer,
    )  # here, after trl_peer has silenced the warning that it gives

    torch.manual_seed(0)
    policy, reference = GPT2LMHeadModel(sizes.gpt2()), GPT2LMHeadModel(sizes.gpt2())
    reference.load_state_dict(policy.state_dict())
    config = PPOConfig(
        output_dir=folder,
        total_episodes=args.prompts * (args.rounds + args.warmup),
        per_device_train_batch_size=args.prompts,
        gradient_accumulation_steps=1,
        num_mini_batches=args.minibatches,
        num_ppo_epochs=args.epochs,
        local_rollout_forward_batch_size=args.prompts,
        response_length=args.new_tokens,
        stop_token=None,
        temperature=1.0,
        kl_coef=KL_COEFFICIENT,
        gamma=1.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=sizes.tokenizer(),
        model=policy,
        ref_model=reference,
        reward_model=GPT2ForSequenceClassification(sizes.gpt2()),
        value_model=GPT2ForSequenceClassification(sizes.gpt2()),
        train_dataset=Dataset.from_dict({"input_ids": prompts_BP.tolist()}),
        callbacks=[turns],
    )
    trainer.log = lambda logs: None  # its figures would stand between ours
    return trainer


def trl_done(args: Any, counted: ForwardTokens, iterations: int) -> dict[str, float]:
    """What TRL did in an iteration, from the tokens that went through its models."""
    row = args.prompts * (args.prompt_tokens + args.new_tokens)
    per_iteration = {name: tokens / iterations for name, tokens in counted.tokens.items()}
    trained = per_iteration["value"] - row  # the rollout's values are one pass over the rows
    sampling = per_iteration["policy"] - trained  # the prompts, then all new tokens but the last, which nothing follows
    for name in ("reference", "reward"):
        if per_iteration[name] != row:
            raise SystemExit(f"TRL's {name} saw {per_iteration[name]} tokens in an iteration instead of {row}")
    return {
        "new_tokens": sampling - args.prompts * args.prompt_tokens + args.prompts,
        "updates": counted.updates / iterations,
        "trained_tokens": trained,
    }


def predicted_flops(args: Any, sizes: Sizes) -> dict[str, float]:
    """FLOPs that each side's algorithm asks for in an iteration; a multiply-add is 2, a backward pass 2 forward ones.

    Both: sampling with a cache; one pass each of reference, value and reward model; epochs x (policy + value) forward
    and backward. gptjax passes the policy once more over the rollout, for log-probabilities by the pass that trains,
    and decodes the last new token too; TRL unembeds the prompt's positions as well as the response's.
    """
    rows, length = args.prompts, args.prompt_tokens + args.new_tokens
    trunk = sizes.trunk_flops(rows * length, length / 2)
    new = sizes.unembedding_flops(rows * args.new_tokens)
    everything = sizes.unembedding_flops(rows * length)
    sampling = trunk + new
    return {
        "trl": sampling + (trunk + everything) + 2 * trunk + 3 * args.epochs * (2 * trunk + everything),
        "gptjax": sampling + 2 * (trunk + new) + 2 * trunk + 3 * args.epochs * (2 * trunk + new),
    }


if __name__ == "__main__":
    main()
