"""One reward-model update of gptjax and of TRL's RewardTrainer on the same comparisons, by turns on the same CPU.

    pip install -e '.[test,peers]'
    python experiments/benchmarks/reward_vs_trl.py

A batch is 8 prompts with K = 6 ranked answers each, rows of 128 tokens, hence 8 x 15 = 120 comparisons. TRL sees 120
pairs (240 rows), gptjax each answer once (48 rows); both make one update on all of them. The model is GPT-2-style with
2 layers, D = 128, 4 heads and 1,024 tokens, float32, without dropout. TRL's time leaves out the collation of its batch
and runs without gradient checkpointing. The script counts comparisons and updates on both sides and fails if either
did less. Last result: docs/log.md.
"""
# pyright: reportMissingImports=false

import argparse
import contextlib
import sys
import tempfile
from functools import partial
from itertools import combinations
from typing import Any

import jax
import numpy as np
import optax
import torch
from datasets import Dataset
from transformers import GPT2ForSequenceClassification
from trl import RewardConfig, RewardTrainer
from trl_peer import ForwardTokens, Sizes, Turns, report, use_cores

from gptjax.data.candidates import packed
from gptjax.model.pure import scalar_model
from gptjax.run.mesh import MeshConfig, make_mesh, put
from gptjax.train.reward import reward_step
from gptjax.train.update import initial_state
from gptjax.types import RewardBatch

LEARNING_RATE = 9e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="timed turns of each side")
    parser.add_argument("--warmup", type=int, default=2, help="turns before, not timed")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--answers", type=int, default=6, help="K, ranked answers of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="of a prompt with its answer")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args()
    use_cores(args.cores)
    sizes = Sizes(length=args.tokens)
    rng = np.random.default_rng(0)
    tokens_BCT = rng.integers(0, sizes.vocabulary, (args.prompts, args.answers, args.tokens))
    ranks_BC = np.argsort(rng.random((args.prompts, args.answers)), axis=1) + 1
    ours = OurStep(sizes, tokens_BCT, ranks_BC)
    turns = Turns(ours, args.warmup)
    with tempfile.TemporaryDirectory() as folder:
        pairs = compared(tokens_BCT, ranks_BC)
        trainer = trl_trainer(args, sizes, pairs, turns, folder)
        counted = ForwardTokens()
        counted.watch(trainer.model.transformer, "reward")
        trainer.create_optimizer()
        counted.watch_updates(trainer.optimizer)
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    steps = args.rounds + args.warmup
    trl_comparisons = counted.tokens["reward"] / (2 * args.tokens) / steps
    done = {
        "gptjax": {"comparisons": ours.comparisons / steps, "updates": int(ours.state.step) / steps},
        "trl": {"comparisons": trl_comparisons, "updates": counted.updates / steps},
    }
    expected = {"comparisons": len(pairs["chosen_ids"]), "updates": 1}
    for side, figures in done.items():
        if figures != expected:
            raise SystemExit(f"{side} did {figures} in a step instead of {expected}")
    rows = {"trl": 2 * len(pairs["chosen_ids"]), "gptjax": ranks_BC.size}
    flops = {side: 3 * sizes.trunk_flops(count * args.tokens, args.tokens / 2) for side, count in rows.items()}
    report("reward-model update", turns, flops, expected | {"rows": rows}, args.json, goal=2)


class OurStep:
    """One update with gptjax, on one device; waits for the result."""

    def __init__(self, sizes: Sizes, tokens_BCT: np.ndarray, ranks_BC: np.ndarray):
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        model = scalar_model(sizes.gptjax())
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE, weight_decay=0.0))
        self.step = jax.jit(partial(reward_step, model=model, optimizer=optimizer), donate_argnums=0)
        batch = RewardBatch(
            tokens_BCT=tokens_BCT.astype(np.int32),
            lengths_BC=np.full(ranks_BC.shape, tokens_BCT.shape[2], np.int32),
            ranks_BC=ranks_BC.astype(np.int32),
        )
        with jax.set_mesh(self.mesh):
            self.batch = put(packed(batch, tokens_BCT.shape[2]), self.mesh)
            self.state = jax.jit(lambda key: initial_state(model.init(key), optimizer, key))(jax.random.key(0))
        self.comparisons = 0

    def __call__(self) -> None:
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.step(self.state, self.batch)
            jax.block_until_ready((self.state, metrics))
        self.comparisons += int(metrics["reward/pairs"])


def compared(tokens_BCT: np.ndarray, ranks_BC: np.ndarray) -> dict[str, list[list[int]]]:
    """Every pair of answers to a prompt, the better one as chosen."""
    pairs: dict[str, list[list[int]]] = {"chosen_ids": [], "rejected_ids": []}
    for tokens_CT, ranks_C in zip(tokens_BCT, ranks_BC, strict=True):
        best_first = tokens_CT[np.argsort(ranks_C)].tolist()
        for chosen, rejected in combinations(best_first, 2):
            pairs["chosen_ids"].append(chosen)
            pairs["rejected_ids"].append(rejected)
    return pairs


def trl_trainer(args: Any, sizes: Sizes, pairs: dict[str, Any], turns: Turns, folder: str) -> RewardTrainer:
    torch.manual_seed(0)
    config = RewardConfig(
        output_dir=folder,
        max_steps=args.rounds + args.warmup,
        per_device_train_batch_size=len(pairs["chosen_ids"]),
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_length=args.tokens,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return RewardTrainer(
        model=GPT2ForSequenceClassification(sizes.gpt2()),
        args=config,
        processing_class=sizes.tokenizer(),
        train_dataset=Dataset.from_dict(pairs),
        callbacks=[turns],
    )


if __name__ == "__main__":
    main()
