"""Options of `gptjax scale`; imports nothing heavy, so that --help is quick."""

import argparse
from pathlib import Path

from gptjax.subcommand import subcommand

_EXAMPLES = {
    "fit": "gptjax scale fit runs/isoflop_quick/runs.jsonl --report runs/isoflop_quick/fit",
    "sweep": "gptjax scale sweep experiments/isoflop_mini.py",
    "recommend": "gptjax scale recommend runs/isoflop_quick/runs.jsonl --flops 1e13 --vocab-size 256 --head-width 16",
    "validate": "gptjax scale validate runs/isoflop_quick/runs.jsonl",
}


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add fit, sweep, recommend and validate to the parser of `gptjax scale`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="scale")
    fit = subcommand(commands, "fit", "fit scaling laws to a table of runs", _EXAMPLES["fit"])
    _table_options(fit)
    sweep = subcommand(commands, "sweep", "train a grid of models, or go on with it", _EXAMPLES["sweep"])
    sweep.add_argument("file", help="Python file with a function sweep(); FILE:NAME for another name")
    sweep.add_argument("--workdir", type=Path, help="folder of the sweep (default: runs/ and its name)")
    sweep.add_argument("--processes", type=int, default=None, help="trunks trained at a time (default: one a core)")
    sweep.add_argument("--shard", default="0/1", help="i/n: this host's share of the trunks; hosts share --workdir")
    sweep.add_argument("--dry-run", action="store_true", help="show the grid and its FLOPs, and train nothing")
    sweep.add_argument("--json", action="store_true", help="print one JSON object")
    recommend = subcommand(commands, "recommend", "say what to train with a budget", _EXAMPLES["recommend"])
    _table_options(recommend)
    recommend.add_argument("--flops", type=float, required=True, dest="budget", help="the budget, such as 1e23")
    recommend.add_argument("--vocab-size", type=int, default=32_768, help="of the model to shape")
    recommend.add_argument("--head-width", type=int, default=128, help="of its attention")
    recommend.add_argument("--aspect", type=float, default=100.0, help="width over layers to aim at")
    recommend.add_argument("--layers", type=int, help="its depth (default: the runs', if alike, else by --aspect)")
    recommend.add_argument(
        "--parameters", default="matmul", help="count that n_params is in: total, non_embedding or matmul"
    )
    validate = subcommand(commands, "validate", "hold out the largest budgets and predict them", _EXAMPLES["validate"])
    _table_options(validate)
    validate.add_argument("--holdout", type=int, default=1, help="budgets held out")


def _table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, help=".jsonl or .csv, one run a row")
    parser.add_argument("--method", choices=("varpro", "huber", "lad"), default="varpro", help="how the law is fitted")
    parser.add_argument("--delta", type=float, default=1e-3, help="of Huber's loss (log nats)")
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap refits")
    parser.add_argument(
        "--resampling", choices=("auto", "trunks", "residuals"), default="auto", help="of the bootstrap"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--n-params", default="n_params", metavar="COLUMN", help="parameters")
    parser.add_argument("--n-tokens", default="n_tokens", metavar="COLUMN", help="training tokens")
    parser.add_argument(
        "--flops-column" if parser.prog.endswith("recommend") else "--flops", default="flops", metavar="COLUMN",
        dest="flops", help="training FLOPs",
    )  # fmt: skip
    parser.add_argument("--loss", default="loss", metavar="COLUMN", help="held-out loss")
    parser.add_argument("--trunk", default="trunk", metavar="COLUMN", help="runs with equal values share training")
    parser.add_argument("--tokenizer", default="tokenizer", metavar="COLUMN", help="runs of several are refused")
    parser.add_argument("--drop", nargs="+", default=[], metavar="RUN", help="runs to leave out, by name or 'line 7'")
    parser.add_argument("--report", type=Path, help="folder for report.html and the figures with their data")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
