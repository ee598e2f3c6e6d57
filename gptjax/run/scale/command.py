"""The commands `gptjax scale fit | validate | recommend`: a table of runs in, tables, JSON and a report out."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.run.progress import Progress, note, table
from gptjax.run.scale.report import Findings, write_scale_report
from gptjax.scaling.envelope import envelope
from gptjax.scaling.fit import FitConfig, fit, residual_trends
from gptjax.scaling.forms import kaplan_law, offset_power_law, repeated_data
from gptjax.scaling.isoflop import minima, power_law
from gptjax.scaling.recommend import Recommendation, ShapeRule, recommend
from gptjax.scaling.runs import Columns, Runs, read_runs
from gptjax.scaling.validate import holdout, rolling_origin


def scale_fit(args: argparse.Namespace) -> None:
    """Fit every law that the runs support, and say how far to trust it."""
    found = findings(read(args), config_of(args))
    _finish(args, found, figures(found))
    if not args.json:
        _print_fit(found)


def scale_validate(args: argparse.Namespace) -> None:
    """Hold out the largest budgets, then every budget in turn."""
    runs, config = read(args), config_of(args)
    predictions = holdout(runs, config, args.holdout)
    rolling = rolling_origin(runs, config)
    found = None
    if args.report is not None:
        found = findings(runs, config)._replace(held_out=tuple(predictions), rolling=tuple(rolling))
    result = {
        "held_out": [prediction.asdict() for prediction in predictions],
        "rolling_origin": [prediction.asdict() for prediction in rolling],
    }
    _finish(args, found, result)
    if not args.json:
        _print_predictions("held out: the largest budgets", predictions)
        _print_predictions("rolling origin: every budget from the smaller ones", rolling)


def scale_recommend(args: argparse.Namespace) -> None:
    """The best size and data for a budget."""
    rule = ShapeRule(
        vocab_size=args.vocab_size, head_width=args.head_width, aspect=args.aspect, layers=args.layers,
        parameters=args.parameters,
    )  # fmt: skip
    found = findings(read(args), config_of(args))
    recommended = recommend(found.fit, args.budget, rule)
    found = found._replace(recommendation=recommended)
    _finish(args, found, recommended.asdict())
    for warning in recommended.warnings:
        note(f"warning: {warning}")
    if not args.json:
        _print_recommendation(recommended)


def read(args: argparse.Namespace) -> Runs:
    """The runs of the table, with a note on stderr for whatever was set aside."""
    columns = Columns(**{name: getattr(args, name) for name in vars(Columns())})
    runs = read_runs(args.table, columns, drop=args.drop)
    for text in runs.notes:
        note(text)
    return runs


def config_of(args: argparse.Namespace) -> FitConfig:
    """How to fit, from options.

    Raises:
        ValueError: an option lies outside its range.
    """
    names = ("method", "delta", "draws", "resampling", "seed")
    return FitConfig(**{name: getattr(args, name) for name in names})


def findings(runs: Runs, config: FitConfig) -> Findings:
    """The fit of the runs and their isoFLOP minima."""
    with Progress("bootstrap", config.draws) as progress:
        fitted = fit(runs, config, done=progress.update)
    found, log_n = minima(runs, fitted.law, noise=fitted.rms_log_residual, seed=config.seed)
    k = runs.flops_per_parameter_token
    lines = (power_law(found, log_n, k), power_law(found, log_n, k, tokens=True))
    return Findings(fit=fitted, minima=tuple(found), lines=lines)


def figures(found: Findings) -> dict[str, Any]:
    """Everything that a fit found, for JSON."""
    fitted, runs = found.fit, found.fit.runs
    names = ("E", "A", "alpha", "B", "beta", "size_exponent")
    hull = envelope(runs)
    result: dict[str, Any] = {
        "columns": vars(runs.columns),
        "runs": len(runs),
        "notes": list(runs.notes),
        "flops_per_parameter_token": runs.flops_per_parameter_token,
        "method": fitted.config.method,
        "law": fitted.law.asdict() | {"size_exponent": float(fitted.law.size_exponent)},
        "intervals_95": {name: fitted.interval(name) for name in names},
        "intervals_80": {name: fitted.interval(name, 0.8) for name in names},
        "search": fitted.search,
        "rms_log_residual": fitted.rms_log_residual,
        "residual_trends": {name: {"slope": s, "t": t} for name, (s, t) in residual_trends(runs, fitted.law).items()},
        "isoflop": [minimum.asdict() for minimum in found.minima],
        "isoflop_exponent": None if found.lines[0] is None else found.lines[0].exponent,
        "isoflop_exponent_95": None if found.lines[0] is None else found.lines[0].interval,
        "envelope_exponent": None if hull is None else hull.exponent,
        "warnings": found.warnings,
    }
    return result | _other_forms(found)


def _other_forms(found: Findings) -> dict[str, Any]:
    runs = found.fit.runs
    forms: dict[str, Any] = {"kaplan": vars(kaplan_law(runs.n, runs.d, runs.loss))}
    budgets = runs.budgets
    if len(budgets) >= 4:
        c, loss = (np.array(x) for x in zip(*((b.c[b.loss.argmin()], b.loss.min()) for b in budgets), strict=True))
        forms["loss_over_compute"] = vars(offset_power_law(c, loss))
    unique = runs.values("unique_tokens")
    if unique is not None and (runs.d > unique * 1.001).any():
        forms["repeated_data"] = vars(repeated_data(runs.n, runs.d, unique, runs.loss, found.fit.law))
    return {"other_forms": forms}


def _finish(args: argparse.Namespace, found: Findings | None, result: dict[str, Any]) -> None:
    """Write the report and print the JSON that were asked for; only a report needs findings."""
    result = _plain(result)
    if args.report is not None and found is not None:
        note(f"report: {write_scale_report(Path(args.report), found, result)}")
    if args.json:
        print(json.dumps(result, allow_nan=False))


def _plain(value: Any) -> Any:
    """JSON has no infinities: they become null."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _print_fit(found: Findings) -> None:
    fitted, runs = found.fit, found.fit.runs
    columns = f"N = {runs.columns.n_params}, D = {runs.columns.n_tokens}, C = {runs.columns.flops}"
    print(f"{len(runs)} runs; {columns}; C = {runs.flops_per_parameter_token:.3g} N D on average")
    law = fitted.law.asdict() | {"a (N* ~ C^a)": float(fitted.law.size_exponent)}
    keys = {"a (N* ~ C^a)": "size_exponent"}
    rows = [[name, value, *fitted.interval(keys.get(name, name))] for name, value in law.items()]
    table(f"L = E + A / N^alpha + B / D^beta, {fitted.config.method}", ("", "fit", "95 % from", "to"), rows)
    rows = [[m.c, m.n, m.n_akima, m.n_surface, m.spread, m.r2, "; ".join(m.flags)] for m in found.minima]
    table("isoFLOP minima", ("FLOPs", "N* parabola", "Akima", "law", "spread", "R2", "flags"), rows)
    if found.lines[0] is not None:
        low, high = found.lines[0].interval
        print(f"N* ~ C^{found.lines[0].exponent:.3f} through the minima (95 % {low:.3f} to {high:.3f})")
    s = fitted.search
    print(
        f"objective {s['objective']:.6g}, {s['starts_screened']:,} starts screened, {s['starts_converged']} of "
        f"{s['starts_polished']} polished converged, condition {s['condition']:.2g}; "
        f"rms log residual {fitted.rms_log_residual:.2%}"
    )
    for warning in found.warnings:
        note(f"warning: {warning}")


def _print_predictions(title: str, predictions: Any) -> None:
    rows = [
        [
            f"{p.c:.3g} ({p.compute_ratio:.1f}x)", p.loss, p.predicted, f"{p.error:+.2%}",
            f"{p.interval[0]:.4g} to {p.interval[1]:.4g}", "inside" if p.inside else "outside",
            None if p.straight_error is None else f"{p.straight_error:+.2%}",
            f"{'pass' if p.passed else 'fail'} ({p.allowed_error:.1%})",
        ]
        for p in predictions
    ]  # fmt: skip
    heads = ("FLOPs", "loss", "predicted", "error", "95 %", "", "straight line", "gate")
    table(title, heads, rows)


def _print_recommendation(r: Recommendation) -> None:
    names = {"n": "N (parameters)", "d": "D (tokens)", "tokens_per_parameter": "tokens per parameter", "loss": "loss"}
    rows = [
        [text, r.values[name], " to ".join(f"{x:.3g}" for x in r.intervals[name]["80%"]),
         " to ".join(f"{x:.3g}" for x in r.intervals[name]["95%"])]
        for name, text in names.items()
    ]  # fmt: skip
    table(f"{r.flops:.3g} FLOPs, {r.ratio:.3g} times the largest run", ("", "best", "80 %", "95 %"), rows)
    rows = [[a.n, a.d, a.compute, a.same_compute_loss] for a in r.alternatives]
    heads = ("parameters", "tokens to equal the optimum", "compute over the budget", "loss on the budget")
    table("other sizes", heads, rows)
    table(
        "batch and learning rate",
        ("rule", "batch (tokens)", "peak lr", "source"),
        [list(vars(s).values()) for s in r.settings],
    )
    s = r.shape
    print(
        f"shape of {r.shape_parameters:,} parameters: --model.layers {s.layers} --model.width {s.width} "
        f"--model.heads {s.heads} --model.hidden {s.hidden}"
    )
