"""Train a sweep: every trunk in a process of its own, one row for each finished horizon, nothing done twice."""

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptjax import __version__
from gptjax.config import to_text
from gptjax.data.shards import file_sha256
from gptjax.files import write_atomically
from gptjax.run.load import load
from gptjax.run.progress import Progress, note, table
from gptjax.run.scale.grid import Sweep, Trunk
from gptjax.scaling.accounting import every_count
from gptjax.scaling.fit import FitConfig, fit
from gptjax.scaling.runs import read_runs
from gptjax.scaling.validate import compared, predict

SCHEMA = 1  # of runs.jsonl


def scale_sweep(args: argparse.Namespace, overrides: list[str]) -> None:
    """`gptjax scale sweep FILE`: train what is missing of the grid, then predict and train the held-out run."""
    if overrides:
        raise ValueError(f"unknown option {overrides[0]!r}; a sweep's settings are in its file; see --help")
    sweep = load_sweep(args.file)
    workdir = args.workdir or Path("runs") / sweep.name
    mine = _share(sweep.trunks, args.shard)
    processes = (os.cpu_count() or 1) if args.processes is None else args.processes
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    if args.dry_run:
        _print_plan(sweep, args.json)
        return
    _claim(sweep, workdir)
    _train(args.file, mine, workdir, processes)
    rows = write_rows(sweep, workdir)
    complete = not any(unfinished(workdir, trunk) for trunk in sweep.trunks)
    said = _held_out(args.file, sweep, workdir) if complete and sweep.held_out else {}
    result = {"runs": len(rows), "table": str(workdir / "runs.jsonl")} | said
    if args.json:
        print(json.dumps(result))
    else:
        _print_rows(rows)
        for name, value in result.items():
            print(f"{name}: {value}")


def load_sweep(target: str) -> Sweep:
    """What `FILE` or `FILE:NAME` defines.

    Raises:
        ValueError: no such file or name, or it gives no sweep.
    """
    return load(target, ["sweep"], (Sweep,))  # type: ignore[return-value]


def write_rows(sweep: Sweep, workdir: Path) -> list[dict[str, Any]]:
    """Write runs.jsonl, whole, from the results that are there, in the order of the grid: the same bytes each time."""
    rows = [row for trunk in sweep.trunks for steps in trunk.horizons if (row := _row(sweep, workdir, trunk, steps))]
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_atomically(workdir / "runs.jsonl", text)
    return rows


def _share(trunks: tuple[Trunk, ...], shard: str) -> tuple[Trunk, ...]:
    index, slash, count = shard.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard {shard!r}: write i/n with 0 <= i < n, such as 0/2 and 1/2 on two hosts")
    return trunks[int(index) :: int(count)]


def _claim(sweep: Sweep, workdir: Path) -> None:
    """See that the folder is this sweep's; trunks check their own settings."""
    about = workdir / "sweep.json"
    if about.exists():
        name = json.loads(about.read_text(encoding="utf-8"))["name"]
        if name != sweep.name:
            raise ValueError(f"{workdir} holds the sweep {name!r}, not {sweep.name!r}: choose another --workdir")
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no sweep: choose another --workdir")
    trunks = [trunk.name for trunk in sweep.trunks]
    write_atomically(about, json.dumps({"name": sweep.name, "trunks": trunks, "schema": SCHEMA}, indent=1))


def unfinished(workdir: Path, trunk: Trunk) -> bool:
    """Whether a horizon of the trunk is missing."""
    return not all(_result(workdir, trunk, steps) for steps in trunk.horizons)


def _train(file: str, trunks: tuple[Trunk, ...], workdir: Path, processes: int) -> None:
    """Train the trunks that are not finished, the dearest first, some at a time, each on its share of the cores.

    Raises:
        ValueError: a trunk failed; what the others finished stays.
    """
    waiting = sorted((t for t in trunks if unfinished(workdir, t)), key=Trunk.own_flops, reverse=True)
    if not waiting:
        return
    names, slots = [trunk.name for trunk in waiting], min(processes, len(waiting))
    # as many cores for each as if none were finished: sums differ in the last bit with the number of threads
    workers = [_start(file, names, workdir, slot, min(processes, len(trunks))) for slot in range(slots)]
    total = int(sum(trunk.own_flops() for trunk in trunks) / 1e6)
    try:
        with Progress("sweep (MFLOP)", max(total, 1), start=_done(workdir, trunks)) as progress:
            while any(worker.poll() is None for worker in workers):
                progress.update(_done(workdir, trunks))
                time.sleep(0.3)
            progress.update(_done(workdir, trunks))
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:  # each saves first
            worker.wait()
    failed = [trunk.name for trunk in waiting if unfinished(workdir, trunk)]
    if failed:
        slot = next((i for i, worker in enumerate(workers) if worker.returncode), 0)
        said = (workdir / f"worker_{slot}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ValueError(
            f"{len(failed)} trunks are not finished ({', '.join(failed)}); a worker said: {' '.join(said[-1:])}. "
            "Mend it and run the same command again: what is finished is kept"
        )


def _start(file: str, names: list[str], workdir: Path, slot: int, slots: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "gptjax.run.scale.worker", file, str(workdir), f"{slot}/{slots}", *names]
    with (workdir / f"worker_{slot}.log").open("ab") as log:
        # a Ctrl-C is for this process alone: a worker that hears of it twice ends without a save
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, process_group=0)


def _done(workdir: Path, trunks: tuple[Trunk, ...]) -> int:
    """MFLOP of the steps that are done, by each stage's log."""
    total = 0.0
    for trunk in trunks:
        stages = trunk.recipe().stages
        for name, stage in stages.items():
            begin = 0 if stage.branch_from is None else stages[stage.branch_from].steps
            total += trunk.flops(max(0, _last_step(workdir / trunk.name / name / "metrics.jsonl") - begin))
    return int(total / 1e6)


def _last_step(log: Path) -> int:
    """The newest step of a log that may be growing; 0 if there is none."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65_536))
        steps = re.findall(rb'^{"step": (\d+),', file.read(), re.MULTILINE)
        return int(steps[-1]) if steps else 0
    return 0


def _stage(workdir: Path, trunk: Trunk, steps: int) -> Path:
    return workdir / trunk.name / f"at_{steps}"


def _result(workdir: Path, trunk: Trunk, steps: int) -> dict[str, Any] | None:
    path = _stage(workdir, trunk, steps) / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _row(sweep: Sweep, workdir: Path, trunk: Trunk, steps: int) -> dict[str, Any] | None:
    """One finished horizon under every counting convention, or None; no clock times, so that reruns give equal rows."""
    result = _result(workdir, trunk, steps)
    if result is None:
        return None
    run, model = trunk.experiment, trunk.experiment.model
    tokens = steps * trunk.batch_tokens
    counted = every_count(model, trunk.row_tokens, tokens)
    loss = float(result["evaluation"]["nats_per_token"])  # "nan" as text, where JSON has no number
    text = to_text(trunk.recipe().stages[f"at_{steps}"]) + result["data_fingerprint"] + __version__
    return {
        "schema": SCHEMA,
        "sweep": sweep.name,
        "run": f"{trunk.name}@{steps}",
        "key": hashlib.sha256(text.encode()).hexdigest()[:16],
        "trunk": trunk.name,
        "status": "done" if math.isfinite(loss) else "diverged",
        "n_params": counted["params_matmul"],
        "n_tokens": tokens,
        "flops": counted["flops_exact"],
        "loss": loss if math.isfinite(loss) else None,
        "bits_per_byte": result["evaluation"]["bits_per_byte"] if math.isfinite(loss) else None,
        "budget": trunk.budgets[trunk.horizons.index(steps)],
        "steps": steps,
        "batch_tokens": trunk.batch_tokens,
        "peak_lr": run.optimizer.peak_lr,
        "seed": run.seed,
        "layers": model.layers,
        "width": model.width,
        "heads": model.heads,
        "mup_base_width": model.mup_base_width,
        "tokenizer": file_sha256(_stage(workdir, trunk, steps) / "tokenizer.model")[:16],
        "data": result["data_fingerprint"],
        "unique_tokens": min(tokens, result["evaluation"]["packing_rows"] * trunk.row_tokens),
        "gptjax": __version__,
    } | counted


def _held_out(file: str, sweep: Sweep, workdir: Path) -> dict[str, Any]:
    """Predict the held-out run, write that down, train it, compare.

    The prediction is read back where it exists: what was said before a run is not said again after it.
    """
    path = workdir / "prediction.json"
    if not path.exists():
        said = _prediction(sweep, workdir)
        write_atomically(path, json.dumps(said, indent=1))
        note(f"prediction written to {path} before the held-out run: loss {said['loss']:.4f}")
    said = json.loads(path.read_text(encoding="utf-8"))
    trunk = sweep.trunk(said["trunk"])
    _train(file, (trunk,), workdir, 1)
    row = _row(sweep, workdir, trunk, trunk.horizons[-1])
    assert row is not None
    write_atomically(workdir / "held_out.jsonl", json.dumps(row) + "\n")
    seen = compared(said, read_runs(workdir / "held_out.jsonl")).asdict()
    write_atomically(workdir / "validation.json", json.dumps(seen, indent=1))
    return {"held_out": seen}


def _prediction(sweep: Sweep, workdir: Path) -> dict[str, Any]:
    """What the fit of the grid says of the candidate whose size is nearest to the optimum."""
    fitted = fit(read_runs(workdir / "runs.jsonl"), FitConfig(draws=1000))
    budget = sweep.held_out[0].budgets[0]
    n, _ = fitted.law.optimum(budget, fitted.runs.flops_per_parameter_token)
    sizes = [every_count(t.experiment.model, t.row_tokens, 1)["params_matmul"] for t in sweep.held_out]
    nearest = min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i] / n)))
    trunk = sweep.held_out[nearest]
    steps = trunk.horizons[-1]
    said = predict(fitted, sizes[nearest], steps * trunk.batch_tokens, trunk.flops(steps))
    said |= {"trunk": trunk.name, "optimal_n_params": float(n), "law": fitted.law.asdict()}
    return said | {"table_sha256": hashlib.sha256((workdir / "runs.jsonl").read_bytes()).hexdigest()}


def _print_plan(sweep: Sweep, as_json: bool) -> None:
    rows = [
        [trunk.name, every_count(trunk.experiment.model, trunk.row_tokens, 1)["params_matmul"], trunk.batch_tokens,
         ", ".join(map(str, trunk.horizons)), trunk.own_flops()]
        for trunk in (*sweep.trunks, *sweep.held_out)
    ]  # fmt: skip
    total = sum(trunk.own_flops() for trunk in sweep.trunks)
    if as_json:
        names = ("trunk", "n_params", "batch_tokens", "steps", "flops")
        print(json.dumps({"flops": total, "trunks": [dict(zip(names, row, strict=True)) for row in rows]}))
        return
    table(f"{sweep.name}: {total:.3g} FLOPs", ("trunk", "parameters", "batch (tokens)", "steps", "FLOPs"), rows)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    names = ("run", "n_params", "n_tokens", "flops", "loss", "status")
    table("runs", names, [[row[name] for name in names] for row in rows])
