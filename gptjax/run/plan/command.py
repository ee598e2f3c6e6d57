"""`gptjax plan`: one experiment, one or more topologies."""

import argparse
import json
import sys


def plan(args: argparse.Namespace, overrides: list[str]) -> bool:
    """Print the plan; false if some program does not fit its devices.

    Raises:
        ValueError: a setting or a topology is wrong.
    """
    from gptjax.run.start import start_jax

    start_jax(devices=max(map(_simulated, args.topology)))
    from gptjax.run.load import load_recipe
    from gptjax.run.plan.compile import plan_experiment, topology_devices
    from gptjax.run.plan.search import ranked, smallest_change
    from gptjax.run.plan.words import as_dict, described, ranking
    from gptjax.run.progress import status

    stages = load_recipe(args.file, overrides).stages
    name = next(iter(stages)) if args.stage is None and len(stages) == 1 else args.stage
    if name not in stages:
        raise ValueError(f"--stage must be one of {', '.join(stages)}, got {name}")
    experiment = stages[name]
    found, fits = {}, True
    for topology in args.topology:
        devices = topology_devices(topology, args.slices)
        about = len(devices), devices[0].device_kind
        if args.search:
            choices = ranked(experiment, devices)
            if not choices:
                raise ValueError(f"no layout of {len(devices)} devices divides the sizes of this model and batch")
            found[topology] = [
                {"options": x.options, "peak": x.peak, "missing": x.missing, "tokens_per_second": x.tokens_per_second}
                for x in choices
            ]
            fits &= choices[0].missing == 0
            _say(args, f"{topology}\n{ranking(choices)}\n")
            continue
        with status(f"compiling for {topology}"):
            programs = plan_experiment(experiment, devices)
        found[topology] = as_dict(programs, *about)
        _say(args, f"{topology}\n{described(programs, *about)}\n")
        if not any(program.memory.missing for program in programs):
            continue
        fits = False
        if not args.no_remedy:
            remedy = smallest_change(experiment, devices)
            found[topology]["remedy"] = None if remedy is None else remedy.options
            _say(args, "no change that was tried makes it fit" if remedy is None else f"it fits with {remedy.options}")
    if args.json:
        print(json.dumps(found))
    elif not fits:
        print("it does not fit", file=sys.stderr)
    return fits


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        print(text)


def _simulated(topology: str) -> int:
    """Devices to simulate: those of cpu:N, else one, on which the program for others is compiled."""
    kind, _, count = topology.partition(":")
    return int(count) if kind == "cpu" and count.isdigit() and int(count) > 0 else 1
