"""Pictures of a scaling fit, each with a caption and the table of numbers that it shows."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.run.report.chart_style import BLUE, GREEN, GREY, ORANGE, Picture, blank, picture, styled
from gptjax.scaling.bootstrap import log_residuals
from gptjax.scaling.envelope import envelope
from gptjax.scaling.fit import Fit
from gptjax.scaling.isoflop import Minimum, PowerLaw
from gptjax.scaling.runs import Runs
from gptjax.scaling.validate import Prediction


class Chart(NamedTuple):
    """A picture, its name as a file, the same as PNG, and the numbers behind it: column -> values."""

    name: str
    picture: Picture
    png: bytes
    table: Mapping[str, Sequence[Any]]


@styled
def isoflop_curves(minima: Sequence[Minimum]) -> Chart | None:
    """Loss over size for every budget, with the local parabola and its minimum."""
    if not minima:
        return None
    figure, (axes,) = blank(height=3.6)
    shades = _shades(len(minima))
    for shade, minimum in zip(shades, minima, strict=True):
        axes.plot(minimum.sizes, minimum.losses, "o", color=shade, markersize=4, label=f"{minimum.c:.2g} FLOPs")
        if minimum.parabola is not None:
            x = np.linspace(np.log(minimum.sizes[0]), np.log(minimum.sizes[-1]), 80)
            y = np.polyval(minimum.parabola, x)
            near = y <= minimum.losses.max() + 0.15 * np.ptp(minimum.losses)
            axes.plot(np.exp(x[near]), y[near], "-", color=shade, linewidth=1.1)
        if minimum.n is not None and minimum.loss is not None:
            axes.plot(minimum.n, minimum.loss, "*", color=ORANGE, markersize=11, zorder=5)
            if minimum.interval:
                axes.plot(minimum.interval, [minimum.loss] * 2, "-", color=ORANGE, linewidth=1.4, zorder=4)
    axes.set(xscale="log", xlabel="parameters", ylabel="loss (nats per token)")
    figure.legend(loc="outside upper center", ncols=3)
    flagged = [minimum for minimum in minima if minimum.flags]
    caption = f"{len(minima)} budgets; stars are minima of local parabolas, bars their 95 % intervals"
    if flagged:
        caption += f"; without a minimum: {', '.join(f'{minimum.c:.2g} FLOPs' for minimum in flagged)}"
    rows = [(m.c, n, loss) for m in minima for n, loss in zip(m.sizes.tolist(), m.losses.tolist(), strict=True)]
    c, n, loss = zip(*rows, strict=True)
    return _chart("isoflop", figure, caption + ".", {"flops": c, "n_params": n, "loss": loss})


@styled
def optimum(
    fitted: Fit, minima: Sequence[Minimum], lines: tuple[PowerLaw | None, PowerLaw | None], target: float | None
) -> Chart:
    """N*(C), D*(C) and tokens per parameter: minima, the line through them, and the law with its 95 % band."""
    figure, all_axes = blank(rows=3, height=6.6)
    k = fitted.runs.flops_per_parameter_token
    last = max(float(fitted.runs.c.max()) * 3, target or 0.0)
    c = np.geomspace(float(fitted.runs.c.min()) / 1.5, last, 40)
    n, d = fitted.law.optimum(c, k)
    drawn = np.stack([np.stack(fitted.optimum_draws(value)) for value in c])  # [c, 2, R]
    curves = {  # the law, its draws, and what (N*, C) of a minimum comes to
        "N*": (n, drawn[:, 0], lambda n, c: n),
        "D*": (d, drawn[:, 1], lambda n, c: c / k / n),
        "D* / N*": (d / n, drawn[:, 1] / drawn[:, 0], lambda n, c: c / k / n / n),
    }
    table: dict[str, Sequence[Any]] = {"flops": c.tolist()}
    good = [(m.c, m.n, m.interval) for m in minima if m.n is not None]
    for axes, (name, (middle, draws, shown)) in zip(all_axes, curves.items(), strict=True):
        low, high = np.nanpercentile(draws, [2.5, 97.5], axis=1)
        axes.fill_between(c, low, high, color=BLUE, alpha=0.15, linewidth=0)
        axes.plot(c, middle, color=BLUE, label="parametric law, 95 % band")
        for budget, size, bars in good:
            if bars:
                axes.plot([budget] * 2, [shown(x, budget) for x in bars], color=ORANGE, linewidth=1.2)
            axes.plot(budget, shown(size, budget), "o", color=ORANGE, markersize=4)
        line = {"N*": lines[0], "D*": lines[1]}.get(name)
        if line is not None:
            axes.plot(c, [line.at(x) for x in c], "--", color=ORANGE, linewidth=1.1, label="through the minima")
        axes.axvspan(float(fitted.runs.c.max()), last, color=GREY, alpha=0.08, linewidth=0)
        axes.set(xscale="log", yscale="log", ylabel={"N*": "N* (parameters)", "D*": "D* (tokens)"}.get(name, name))
        table |= {name: middle.tolist(), f"{name} low": low.tolist(), f"{name} high": high.tolist()}
    all_axes[0].legend()
    all_axes[-1].set_xlabel("compute (FLOPs); shaded: beyond the largest run")
    low, high = fitted.interval("size_exponent")
    caption = f"N* grows as C^{fitted.law.size_exponent:.3f} (95 % {low:.3f} to {high:.3f}) by the parametric law"
    if lines[0] is not None:
        low, high = lines[0].interval
        caption += f", as C^{lines[0].exponent:.3f} ({low:.3f} to {high:.3f}) through the minima"
    return _chart("optimum", figure, caption + ".", table)


@styled
def frontier(fitted: Fit, predictions: Sequence[Prediction] = ()) -> Chart:
    """Loss over compute: runs, the training-curve envelope, the law's optimum, and held-out runs."""
    figure, (axes,) = blank(height=3.6)
    runs = fitted.runs
    scatter = axes.scatter(runs.c, runs.loss, c=np.log10(runs.n), cmap="viridis", s=14, zorder=3)
    figure.colorbar(scatter, ax=axes, label="log10 parameters")
    last = max([float(runs.c.max()), *(p.c for p in predictions)]) * 1.3
    c = np.geomspace(float(runs.c.min()), last, 80)
    loss = fitted.law.loss(*fitted.law.optimum(c, runs.flops_per_parameter_token))
    axes.plot(c, loss, color=BLUE, label="law at its optimum")
    hull = envelope(runs)
    caption = "Losses of all runs, and the parametric law at the best size of each budget"
    if hull is not None:
        axes.plot(hull.c, hull.loss, color=GREEN, linewidth=1.2, label="envelope of the runs")
        if hull.exponent is not None:
            caption += f"; on the envelope the best size grows as C^{hull.exponent:.3f}"
    for i, p in enumerate(predictions):
        axes.errorbar(
            [p.c], [p.predicted], [[p.predicted - p.interval[0]], [p.interval[1] - p.predicted]], fmt="_",
            color=ORANGE, capsize=3, label=None if i else "predicted, 95 %",
        )  # fmt: skip
        axes.plot(p.c, p.loss, "D", color=ORANGE, markersize=5, zorder=5, label=None if i else "held out, observed")
    axes.set(xscale="log", yscale="log", xlabel="compute (FLOPs)", ylabel="loss (nats per token)")
    axes.legend()
    return _chart("frontier", figure, caption + ".", {"flops": c.tolist(), "loss": np.asarray(loss).tolist()})


@styled
def residuals(fitted: Fit) -> Chart:
    """Observed over fitted loss against N, D and C."""
    figure, all_axes = blank(columns=3, height=2.4)
    runs = fitted.runs
    percent = 100 * np.expm1(log_residuals(runs, fitted.law))
    for axes, values, name in zip(all_axes, (runs.n, runs.d, runs.c), ("parameters", "tokens", "FLOPs"), strict=True):
        axes.axhline(0, color=GREY, linewidth=1)
        axes.plot(values, percent, "o", color=BLUE, markersize=3)
        axes.set(xscale="log", xlabel=name)
    all_axes[0].set_ylabel("observed over fitted (%)")
    caption = f"Residuals; their root mean square is {fitted.rms_log_residual:.2%} (degrees of freedom counted)."
    table = {"n_params": runs.n, "n_tokens": runs.d, "flops": runs.c, "percent": percent}
    return _chart("residuals", figure, caption, {name: values.tolist() for name, values in table.items()})


@styled
def draws(fitted: Fit) -> Chart:
    """Bootstrap draws of the two exponents and of the two terms."""
    figure, all_axes = blank(columns=3, height=2.6)
    laws, law = fitted.draws, fitted.law
    panels = [("alpha", "beta", False), ("alpha", "A", True), ("beta", "B", True)]
    for axes, (x, y, log) in zip(all_axes, panels, strict=True):
        axes.plot(getattr(laws, x), getattr(laws, y), ".", color=BLUE, markersize=2, alpha=0.4)
        axes.plot(getattr(law, x), getattr(law, y), "+", color=ORANGE, markersize=9, markeredgewidth=1.8)
        axes.set(xlabel=x, ylabel=y, yscale="log" if log else "linear")
    parts = []
    for name in ("E", "alpha", "beta"):
        low, high = fitted.interval(name)
        parts.append(f"{name} {getattr(law, name):.3f} ({low:.3f} to {high:.3f})")
    table = {name: getattr(laws, name).tolist() for name in ("E", "A", "alpha", "B", "beta")}
    return _chart("bootstrap", figure, f"{len(laws.E):,} refits; 95 % intervals: {', '.join(parts)}.", table)


@styled
def held_out(predictions: Sequence[Prediction]) -> Chart | None:
    """Signed error of every prediction over the compute ratio, beside its interval and the straight line's error."""
    if not predictions:
        return None
    figure, (axes,) = blank(height=3.0)
    axes.axhline(0, color=GREY, linewidth=1)
    places = np.arange(len(predictions))
    errors = [100 * p.error for p in predictions]
    bars = [[100 * (p.predicted - end) / p.loss for end in p.interval] for p in predictions]
    axes.errorbar(
        places, errors, np.abs(np.array(bars)).T, fmt="o", color=BLUE, capsize=3, label="parametric law, 95 %"
    )
    lines = [(i, 100 * p.straight_error) for i, p in enumerate(predictions) if p.straight_error is not None]
    if lines:
        axes.plot(*zip(*lines, strict=True), "x", color=ORANGE, label="straight line through two minima")
    axes.set_xticks(places, [f"{p.c:.2g}\n({p.compute_ratio:.1f}x)" for p in predictions])
    axes.set(xlabel="held-out budget (FLOPs; times the largest fitted)", ylabel="predicted over observed (%)")
    axes.legend()
    inside = sum(p.inside for p in predictions)
    caption = f"{inside} of {len(predictions)} held-out losses lie inside the 95 % interval of their prediction."
    table = {
        "flops": [p.c for p in predictions],
        "error_percent": errors,
        "ratio": [p.compute_ratio for p in predictions],
    }
    return _chart("held_out", figure, caption, table)


@styled
def learning_rates(runs: Runs) -> Chart | None:
    """Loss over peak learning rate, one basin for each width and parametrization; None without such runs."""
    rate, width = runs.values("peak_lr"), runs.values("width")
    kind = ["muP" if row.get("mup_base_width") else "standard" for row in runs.rows]
    if rate is None or width is None or len(np.unique(rate)) < 3:
        return None
    kinds = sorted(set(kind), reverse=True)
    figure, all_axes = blank(columns=len(kinds), height=3.0)
    parts = []
    for axes, name in zip(all_axes, kinds, strict=True):
        mine = np.array([k == name for k in kind])
        widths = np.unique(width[mine])
        best = []
        for shade, w in zip(_shades(len(widths)), widths, strict=True):
            chosen = np.flatnonzero(mine & (width == w))
            chosen = chosen[np.argsort(rate[chosen])]
            axes.plot(
                rate[chosen], runs.loss[chosen], "o-", color=shade, markersize=3, linewidth=1.1, label=f"width {w:.0f}"
            )
            best.append(float(np.log2(rate[chosen[runs.loss[chosen].argmin()]])))
        axes.set(xscale="log", title=name, xlabel="peak learning rate")
        axes.legend()
        octaves = max(best) - min(best)
        parts.append(f"{name}: best rates span {octaves:.1f} octaves over widths {widths[0]:.0f} to {widths[-1]:.0f}")
    all_axes[0].set_ylabel("loss (nats per token)")
    table = {"peak_lr": rate.tolist(), "width": width.tolist(), "kind": kind, "loss": runs.loss.tolist()}
    return _chart("learning_rates", figure, "; ".join(parts) + ".", table)


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * i / max(1, count - 1)) for i in range(count)]


def _chart(name: str, figure: Any, caption: str, table: Mapping[str, Sequence[Any]]) -> Chart:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _label_between_decades(axis)
    shown = picture(figure, caption)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    return Chart(name, shown, file.getvalue(), table)


def _label_between_decades(axis: Any) -> None:
    """Labels that do not run into one another on a logarithmic axis of less than two decades."""
    from matplotlib.ticker import FuncFormatter

    low, high = axis.get_view_interval()
    if axis.get_scale() != "log" or not 0 < low < high < 100 * low:
        return
    narrow = high < 3 * low  # such as losses

    def label(value: float, _: Any) -> str:
        power = math.floor(math.log10(value) + 1e-9)
        digit = round(value / 10**power)
        if narrow:
            return f"{value:.6g}"
        return rf"$\mathdefault{{{digit}\times10^{{{power}}}}}$" if digit in (2, 5) else ""

    axis.set_minor_formatter(FuncFormatter(label))
    if narrow:
        axis.set_major_formatter(FuncFormatter(label))
