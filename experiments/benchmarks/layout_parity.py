"""The first steps of every stage of a finished run, on one device and on eight simulated ones, side by side.

    python experiments/benchmarks/layout_parity.py runs/chatgpt_mini --steps 50

Each stage starts from the finished run's results, so that only the layout differs. Prints the largest relative
difference of each stage's losses, and by how much the bytes per device of parameters and optimizer state fall.
Last result: docs/log.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from gptjax.run.metrics import read_metrics
from gptjax.run.progress import table

LOSSES = {
    "lm": ("lm/nats_per_token",),
    "sft": ("sft/nats_per_token",),
    "reward": ("reward/loss_nats",),
    "ppo": ("ppo/score", "ppo/value_loss", "ppo/kl_nats_per_sequence"),
}
MESH = ["--devices", "8", "--mesh.fsdp", "4", "--mesh.tensor", "2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of the recipe")
    parser.add_argument("--file", default="experiments/chatgpt_mini.py")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("options", nargs="*", help="further overrides, after --")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for stage, names in LOSSES.items():
            logs, held = {}, {}
            for layout, options in {"one": [], "eight": MESH}.items():
                folder = Path(scratch) / f"{stage}-{layout}"
                _run(args, stage, folder, [*options, *args.options])
                logs[layout] = read_metrics(folder / "run" / "metrics.jsonl")
                result = json.loads((folder / "run" / "result.json").read_text())
                held[layout] = result["state_bytes_per_device"]
            for name in names:
                difference = f"{_largest_difference(logs['one'], logs['eight'], name):.1e}"
                rows.append([stage, name, args.steps, difference, held["one"] / held["eight"]])
    heads = ["stage", "metric", "steps", "largest relative difference", "bytes per device, one / eight"]
    table("one device against fsdp 4 x tensor 2", heads, rows)


def _run(args: argparse.Namespace, stage: str, folder: Path, options: list[str]) -> None:
    run = args.run.resolve()
    sources = {
        "lm": ["--task.tokenizer", str(run / "lm" / "tokenizer.model")],
        "sft": ["--task.start_from", str(run / "lm")],
        "reward": [
            "--task.start_from", str(run / "sft"),
            "--task.comparisons", str(run / "reward" / "data" / "train.jsonl"),
            "--task.heldout_comparisons", str(run / "reward" / "data" / "heldout.jsonl"),
        ],
        "ppo": ["--task.policy_from", str(run / "sft"), "--task.reward_from", str(run / "reward")],
    }  # fmt: skip
    steps = args.steps if stage != "ppo" else -(-args.steps // 8) * 8
    command = [sys.executable, "-m", "gptjax", "run", f"{args.file}:{stage}", "--workdir", str(folder)]
    subprocess.run([*command, "--steps", str(steps), *sources[stage], *options], check=True)


def _largest_difference(one: list[dict], eight: list[dict], name: str) -> float:
    pairs = [(a[name], b[name]) for a, b in zip(one, eight, strict=True) if name in a]
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)


if __name__ == "__main__":
    main()
