"""The command line: `gptjax run | plan | tokenize | curate | scale | generate | chat`."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gptjax.run.exits import (
    DOES_NOT_FIT,
    NUMERICAL_FAULT,
    PREEMPTED,
    USER_ERROR,
    NumericalFaultError,
    Preempted,
)
from gptjax.subcommand import subcommand

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_HOSTS = ("coordinator", "count", "index")

_EXAMPLES = {
    "run": "gptjax run experiments/chatgpt_mini.py --workdir runs/mini --seed 1",
    "plan": "gptjax plan experiments/llama2_7b.py --topology v5e:16x16",
    "tokenize": "gptjax tokenize texts/ rows/ --tokenizer runs/chatgpt_mini/lm/tokenizer.model --row-tokens 128",
    "scale": "gptjax scale sweep experiments/isoflop_mini.py",
    "curate": "gptjax curate prompts.jsonl curated --field prompt --user-field user --json",
    "generate": "gptjax generate runs/chatgpt_mini --prompt 'What does `os.path.join` do?'",
    "chat": "gptjax chat runs/chatgpt_mini --stage sft",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with one of the codes in `gptjax.run.exits`, or 130 where there is nothing to save."""
    args, rest = _parser().parse_known_args(argv)
    try:
        args.command(args, rest)
    except ValueError as error:
        if os.environ.get("GPTJAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None
    except OSError as error:
        if error.errno not in _DISK_ERRORS or os.environ.get("GPTJAX_TRACEBACK"):
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror}; nothing was deleted, mend it and run it again", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None
    except NumericalFaultError as error:
        print(f"stopped: {error}", file=sys.stderr)
        raise SystemExit(NUMERICAL_FAULT) from None
    except Preempted as stopped:
        print(f"stopped by {stopped}: run the same command again to go on", file=sys.stderr)
        raise SystemExit(PREEMPTED) from None
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


def _parser() -> argparse.ArgumentParser:
    from gptjax import __version__

    parser = argparse.ArgumentParser(prog="gptjax", description="Train a GPT the way ChatGPT was trained.")
    parser.add_argument("--version", action="version", version=f"gptjax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _command(commands, "run", _run, "run an experiment or a recipe, or go on with it")
    run.add_argument("file", help="Python file with a function experiment() or recipe(); FILE:NAME for another name")
    run.add_argument("--workdir", type=Path, help="folder of the run (default: runs/ and its name)")
    run.add_argument("--devices", type=int, help="simulate this many devices on the CPU (of each process)")
    hosts = run.add_argument_group(
        "several processes", "found by themselves on Cloud TPU, GKE, SLURM and Open MPI; elsewhere give all three"
    )
    hosts.add_argument("--hosts.coordinator", metavar="HOST:PORT", help="where process 0 listens")
    hosts.add_argument("--hosts.count", type=int, metavar="N", help="processes in all; 1: alone, look for no others")
    hosts.add_argument("--hosts.index", type=int, metavar="I", help="number of this process, from 0")
    _add_plan(commands)
    _add_tokenize(commands)
    _add_curate(commands)
    _add_scale(commands)
    for name, command, text in (
        ("generate", _generate, "answer one prompt"),
        ("chat", _chat, "talk to a trained model"),
    ):
        sub = _command(commands, name, command, text)
        sub.add_argument("run", type=Path, help="folder of a run")
        sub.add_argument("--stage", help="which stage's model (default: the last one that can talk)")
        sub.add_argument("--temperature", type=float, default=0.7, help="0: the most likely token each time")
        sub.add_argument("--top-p", type=float, default=0.95, help="share of the probability that is kept")
        sub.add_argument("--max-tokens", type=int, help="longest answer (default: 96, or half of what the model reads)")
        sub.add_argument("--seed", type=int, default=0, help="of the draws")
        if name == "generate":
            sub.add_argument("--prompt", required=True, help="what to answer")
            sub.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_plan(commands) -> None:
    plan = _command(commands, "plan", _plan, "compile an experiment for devices that are not there")
    plan.add_argument("file", help="as for run")
    plan.add_argument("--topology", required=True, nargs="+", help="such as v5e:16x16 (needs the extra tpu) or cpu:8")
    plan.add_argument("--slices", type=int, default=1, help="of that topology, joined by the data-centre network")
    plan.add_argument("--stage", help="of a recipe (default: the only one)")
    plan.add_argument("--search", action="store_true", help="rank layouts, remat policies and larger batches")
    plan.add_argument("--no-remedy", action="store_true", help="do not look for a change that would make it fit")
    plan.add_argument("--json", action="store_true", help="print one JSON object")


def _add_tokenize(commands) -> None:
    tokenize = _command(commands, "tokenize", _tokenize, "pack a corpus into shards that --task.shards reads")
    tokenize.add_argument("corpus", type=Path, help=".txt, .jsonl, a .gz of either, or a folder of them")
    tokenize.add_argument("folder", type=Path, help="where the shards go; give it again to go on")
    tokenize.add_argument("--tokenizer", type=Path, required=True, help="a sentencepiece model")
    tokenize.add_argument("--row-tokens", type=int, required=True, help="tokens of a row")
    tokenize.add_argument("--field", default="text", help="of a JSON line, the text")
    tokenize.add_argument("--heldout-fraction", type=float, default=0.01, help="of the documents")
    tokenize.add_argument("--long", choices=("split", "truncate", "drop"), default="split", help="long documents")
    tokenize.add_argument("--part-megabytes", type=float, default=64.0, help="text of a shard")
    tokenize.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at once")
    tokenize.add_argument("--json", action="store_true", help="print the counts as one JSON object")


def _add_curate(commands) -> None:
    curate = _command(commands, "curate", _curate, "drop near-duplicate and personal prompts and split them by user")
    curate.add_argument("file", type=Path, help="JSON lines, one prompt each")
    curate.add_argument("folder", type=Path, help="where train.jsonl, valid.jsonl, test.jsonl and curation.json go")
    curate.add_argument("--field", default="prompt", help="of a line, the prompt: text or messages")
    curate.add_argument("--user-field", default="user", help="of a line, whom it comes from")
    curate.add_argument("--prefix-characters", type=int, default=100, help="equal beginnings of this length are one")
    curate.add_argument("--prompts-per-user", type=int, default=200, help="most prompts of one user")
    curate.add_argument("--valid", type=float, default=0.1, help="share of the users")
    curate.add_argument("--test", type=float, default=0.1, help="share of the users")
    curate.add_argument("--json", action="store_true", help="print the report as one JSON object")


def _add_scale(commands) -> None:
    from gptjax.run.scale.options import add_commands

    add_commands(_command(commands, "scale", _scale, "scaling curves: train a sweep, fit it, recommend, validate"))


def _command(commands, name: str, function, text: str) -> argparse.ArgumentParser:
    parser = subcommand(commands, name, text, _EXAMPLES[name], _MORE.get(name, ""))
    parser.set_defaults(command=function)
    return parser


_MORE = {
    "plan": "\n\nSettings are overridden as for run. Exit code 3: it does not fit.",
    "run": "\n\nSettings of the file can be overridden: --batch_size 16, --optimizer.peak_lr 1e-3, --mesh.fsdp 4;"
    "\nin a recipe that means every stage, --stages.sft.steps 50 one of them. config.txt in a stage's folder has all.",
}


def _run(args: argparse.Namespace, overrides: list[str]) -> None:
    from gptjax.run.hosts import HostsConfig, is_first
    from gptjax.run.load import load_recipe
    from gptjax.run.start import start_jax

    if args.devices is not None and args.devices < 1:
        raise ValueError(f"--devices must be at least 1, got {args.devices}")
    start_jax(args.devices, HostsConfig(**{name: getattr(args, f"hosts.{name}") for name in _HOSTS}))
    recipe = load_recipe(args.file, overrides)
    from gptjax.run.criteria import criteria_sentences
    from gptjax.run.driver import run
    from gptjax.run.experiment import task_kind
    from gptjax.serve.model import ANSWERING

    report = run(recipe, args.workdir or Path("runs") / recipe.name)
    if not is_first():
        return
    print(f"report: {report}")
    for sentence in criteria_sentences(report.parent, list(recipe.stages)):
        print(sentence)
    if any(task_kind(experiment) in ANSWERING for experiment in recipe.stages.values()):
        print(f"talk to it: gptjax chat {report.parent}")


def _plan(args: argparse.Namespace, overrides: list[str]) -> None:
    from gptjax.run.plan.command import plan

    if not plan(args, overrides):
        raise SystemExit(DOES_NOT_FIT)


def _tokenize(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    import json

    from gptjax.run.tokenization import TokenizeConfig, tokenize

    config = TokenizeConfig(
        row_tokens=args.row_tokens,
        field=args.field,
        heldout_fraction=args.heldout_fraction,
        long=args.long,
        part_megabytes=args.part_megabytes,
    )
    manifest = tokenize(args.corpus, args.folder, args.tokenizer, config, args.processes)
    counts = {
        split: {name: value for name, value in about.items() if name != "shards"} | {"shards": len(about["shards"])}
        for split, about in manifest["splits"].items()
    }
    if args.json:
        print(json.dumps(counts | {"fingerprint": manifest["fingerprint"]}))
        return
    for split, found in counts.items():
        print(
            f"{split}: {found['documents']:,} documents, {found['tokens']:,} tokens in {found['rows']:,} rows "
            f"({found['fill']:.1%} full), {found['shards']} shards"
        )


def _curate(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    import json

    from gptjax.data.curate import CurationConfig
    from gptjax.run.curation import curate_file

    config = CurationConfig(
        prefix_characters=args.prefix_characters,
        prompts_per_user=args.prompts_per_user,
        valid=args.valid,
        test=args.test,
    )
    report = curate_file(args.file, args.folder, config, field=args.field, user_field=args.user_field)
    if args.json:
        print(json.dumps(report))
        return
    print(f"{report['prompts']} prompts: " + ", ".join(f"{n} {split}" for split, n in report["kept"].items()))
    for reason, n in report["dropped"].items():
        print(f"dropped {n}: {reason}")


def _scale(args: argparse.Namespace, rest: list[str]) -> None:
    if args.scale == "sweep":
        from gptjax.run.scale.sweep import scale_sweep

        scale_sweep(args, rest)
        return
    _refuse(rest)
    from gptjax.run.scale import command

    {"fit": command.scale_fit, "validate": command.scale_validate, "recommend": command.scale_recommend}[args.scale](
        args
    )


def _generate(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    from gptjax.serve.terminal import generate

    generate(args)


def _chat(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    from gptjax.serve.terminal import chat

    chat(args)


def _refuse(rest: list[str]) -> None:
    if rest:
        raise ValueError(f"unknown option {rest[0]!r}; see --help")
