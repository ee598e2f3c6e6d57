"""The mini recipe over several seeds, and a control whose reward model learns from shuffled ranks.

    python experiments/benchmarks/recipe_seeds.py runs/seeds --seeds 0 1 2

Runs (or goes on with) `experiments/chatgpt_mini.py` in a folder for each seed, then the reward model and PPO once more
on the first seed's SFT model with the ranks of each training prompt permuted. Prints what the recipe is held to.
Last result: docs/log.md.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.run.progress import table

RECIPE = "experiments/chatgpt_mini.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    for seed in args.seeds:
        _gptjax(RECIPE, "--workdir", args.folder / f"seed{seed}", "--seed", seed)
    sft, control = args.folder.resolve() / f"seed{args.seeds[0]}" / "sft", args.folder.resolve() / "control"
    permuted = ["--task.start_from", sft, "--task.permute-labels", "--seed", args.seeds[0]]
    _gptjax(f"{RECIPE}:reward", "--workdir", control / "reward", *permuted)
    models = ["--task.policy_from", sft, "--task.reward_from", control / "reward" / "run", "--seed", args.seeds[0]]
    _gptjax(f"{RECIPE}:ppo", "--workdir", control / "ppo", *models)
    runs = {f"seed {seed}": _figures(args.folder / f"seed{seed}") for seed in args.seeds}
    runs["control"] = {
        stage: json.loads((control / stage / "run" / "result.json").read_text()) for stage in ("reward", "ppo")
    }
    _print(runs)


def _gptjax(*arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", "gptjax", "run", *map(str, arguments)], check=True)


def _figures(run: Path) -> dict[str, Any]:
    return {stage: json.loads((run / stage / "result.json").read_text()) for stage in ("lm", "sft", "reward", "ppo")}


def _of(result: dict[str, Any], stage: str, name: str) -> float | None:
    return result[stage]["evaluation"][name] if stage in result else None


def _print(runs: dict[str, dict[str, Any]]) -> None:
    figures = [
        ("bits per byte, held out", "lm", "bits_per_byte"),
        ("xz -9e", "lm", "xz_bits_per_byte"),
        ("answers that end", "sft", "end_rate"),
        ("accuracy on sampled pairs", "reward", "sampled_pair_accuracy"),
        ("Bayes", "reward", "sampled_pair_bayes_accuracy"),
        ("length only", "reward", "length_only_accuracy"),
        ("gold before PPO", "ppo", "gold_sft"),
        ("gold after PPO", "ppo", "gold_ppo"),
        ("KL (nats)", "ppo", "kl_nats"),
        ("KL target (nats)", "ppo", "kl_target_nats"),
    ]
    rows = [[text, *(_of(run, stage, name) for run in runs.values())] for text, stage, name in figures]
    gains = [run["ppo"]["evaluation"] for run in runs.values()]
    rows.append(["gold gain", *(gain["gold_gain"] for gain in gains)])
    rows += [
        [f"95 % interval, {end}", *(gain["gold_gain_ci"][i] for gain in gains)] for i, end in ((0, "low"), (1, "high"))
    ]
    best = [max(gain["best_of_n"], key=lambda row: row["n"]) for gain in gains]
    rows.append(
        [
            f"gain of best of {best[0]['n']}",
            *(row["gold"] - gain["gold_sft"] for row, gain in zip(best, gains, strict=True)),
        ]
    )
    rows.append(["its KL (nats)", *(row["kl_nats"] for row in best)])
    rows.append(["minutes", *(sum(stage["seconds"] for stage in run.values()) / 60 for run in runs.values())])
    means = [_mean([value for value in row[1:-1] if value is not None]) for row in rows]
    table(
        "the mini recipe", ["", *runs, "mean of seeds"], [[*row, mean] for row, mean in zip(rows, means, strict=True)]
    )


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


if __name__ == "__main__":
    main()
