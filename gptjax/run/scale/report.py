"""The HTML report of a scaling fit, with every figure beside it as SVG, PNG and CSV."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.files import write_atomically
from gptjax.run.report import html as pieces
from gptjax.run.scale import charts
from gptjax.run.scale.charts import Chart
from gptjax.scaling.fit import Fit
from gptjax.scaling.isoflop import Minimum, PowerLaw
from gptjax.scaling.recommend import Recommendation
from gptjax.scaling.validate import Prediction


class Findings(NamedTuple):
    """What the commands found; predictions and a recommendation where they were asked for."""

    fit: Fit
    minima: tuple[Minimum, ...]
    lines: tuple[PowerLaw | None, PowerLaw | None]
    held_out: tuple[Prediction, ...] = ()
    rolling: tuple[Prediction, ...] = ()
    recommendation: Recommendation | None = None

    @property
    def warnings(self) -> list[str]:
        """What the runs do not support: of the recommendation, else of the fit, and of every isoFLOP profile."""
        own = self.fit.warnings if self.recommendation is None else self.recommendation.warnings
        return [*own, *(f"{minimum.c:.3g} FLOPs: {flag}" for minimum in self.minima for flag in minimum.flags)]


def write_scale_report(folder: Path, found: Findings, result: dict[str, Any]) -> Path:
    """Write report.html, result.json and figures/ into a folder; return the path of the report.

    Raises:
        ValueError: a number of `result` is not finite, for which JSON has no text.
    """
    text = json.dumps(result, indent=1, allow_nan=False)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    drawn = _drawn(found)
    for chart in drawn:
        _save(figures, chart)
    write_atomically(folder / "result.json", text)
    warnings = [f"{warning[0].upper()}{warning[1:]}." for warning in found.warnings]
    parts = [pieces.paragraph(_summary(found)), *map(pieces.note, warnings), _law_table(found.fit)]
    for chart in drawn:
        parts += [pieces.heading(_TITLES[chart.name]), pieces.figure(chart.picture)]
        parts += [_minima_table(found.minima)] if chart.name == "isoflop" else []
        parts += [_prediction_table(found)] if chart.name == "held_out" else []
    parts += [_recommendation(found.recommendation)] if found.recommendation else []
    if found.fit.runs.notes:
        parts.append(pieces.folded("Rows set aside", "\n".join(found.fit.runs.notes)))
    parts.append(pieces.folded("All figures as JSON", text))
    path = folder / "report.html"
    write_atomically(path, pieces.page("Scaling report", parts))
    return path


_TITLES = {
    "isoflop": "IsoFLOP profiles",
    "optimum": "Best size and data",
    "frontier": "Loss over compute",
    "held_out": "Held-out budgets",
    "residuals": "Residuals",
    "bootstrap": "Uncertainty of the parameters",
    "learning_rates": "Learning rates",
}


def _drawn(found: Findings) -> list[Chart]:
    target = found.recommendation.flops if found.recommendation else None
    predicted = [*found.held_out, *(one for one in found.rolling if one not in found.held_out)]
    drawn = [
        charts.isoflop_curves(found.minima),
        charts.optimum(found.fit, found.minima, found.lines, target),
        charts.frontier(found.fit, found.held_out),
        charts.held_out(sorted(predicted, key=lambda prediction: prediction.c)),
        charts.residuals(found.fit),
        charts.draws(found.fit),
        charts.learning_rates(found.fit.runs),
    ]
    return [chart for chart in drawn if chart is not None]


def _save(folder: Path, chart: Chart) -> None:
    (folder / f"{chart.name}.svg").write_bytes(chart.picture.svg)
    (folder / f"{chart.name}.png").write_bytes(chart.png)
    with (folder / f"{chart.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(chart.table)
        writer.writerows(zip(*chart.table.values(), strict=True))


def _summary(found: Findings) -> str:
    fitted, runs = found.fit, found.fit.runs
    low, high = fitted.interval("size_exponent")
    text = (
        f"{len(runs)} runs from {runs.c.min():.2g} to {runs.c.max():.2g} FLOPs, fitted by {fitted.config.method}. "
        f"Parameters are counted as {runs.columns.n_params}, compute as {runs.columns.flops}, which is "
        f"{runs.flops_per_parameter_token:.3g} N D on average; another convention gives other exponents. The best "
        f"size grows as C to the power {fitted.law.size_exponent:.3f} (95 % interval {low:.3f} to {high:.3f}); the law "
        f"leaves residuals of {fitted.rms_log_residual:.2%}."
    )
    for p in found.held_out:
        text += f" Held out at {p.compute_ratio:.1f} times the compute, its prediction is off by {p.error:+.2%}."
    return text


def _law_table(fitted: Fit) -> str:
    names = ("E", "A", "alpha", "B", "beta", "size_exponent")
    rows = []
    for name in names:
        inner, outer = fitted.interval(name, 0.8), fitted.interval(name)
        rows.append(
            [name, f"{float(getattr(fitted.law, name)):.4g}", *(f"{a:.4g} to {b:.4g}" for a, b in (inner, outer))]
        )
    return pieces.table(("parameter", "fit", "80 %", "95 %"), rows, numbers=(1, 2, 3))


def _minima_table(minima: tuple[Minimum, ...]) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    rows = [
        [f"{m.c:.3g}", shown(m.n), shown(m.n_akima), shown(m.n_surface), shown(m.spread), shown(m.r2)] for m in minima
    ]
    heads = ("FLOPs", "N* parabola", "Akima", "law", "spread", "R2")
    return pieces.table(heads, rows, numbers=range(6))


def _prediction_table(found: Findings) -> str:
    rows = []
    for kind, predictions in (("held out", found.held_out), ("rolling", found.rolling)):
        for p in predictions:
            line = "-" if p.straight_error is None else f"{p.straight_error:+.2%}"
            interval = f"{p.interval[0]:.4g} to {p.interval[1]:.4g}"
            rows.append([kind, f"{p.c:.3g}", f"{p.loss:.4g}", f"{p.predicted:.4g}", f"{p.error:+.2%}", interval, line])
    heads = ("", "FLOPs", "loss", "predicted", "error", "95 %", "straight line")
    return pieces.table(heads, rows, numbers=range(1, 7))


def _recommendation(r: Recommendation) -> str:
    names = {"n": "parameters", "d": "tokens", "tokens_per_parameter": "tokens per parameter", "loss": "loss"}
    rows = [
        [
            text,
            f"{r.values[name]:.4g}",
            *(" to ".join(f"{x:.3g}" for x in r.intervals[name][level]) for level in ("80%", "95%")),
        ]
        for name, text in names.items()
    ]
    others = [
        [f"{a.n:.3g}", "-" if a.d is None else f"{a.d:.3g}", "-" if a.compute is None else f"{a.compute:.2f}",
         f"{a.same_compute_loss:.4g}"]
        for a in r.alternatives
    ]  # fmt: skip
    heads = ("parameters", "tokens to equal the optimum", "compute", "loss on the budget")
    return "\n".join(
        [
            pieces.heading(f"What to train with {r.flops:.3g} FLOPs"),
            pieces.table(("", "best", "80 %", "95 %"), rows, numbers=(1, 2, 3)),
            pieces.table(heads, others, numbers=range(4)),
        ]
    )
