"""Pictures of a report: each function draws one from logged rows and returns it with a one-sentence caption.

A function returns None when the log holds nothing to draw. Values that are not finite are left out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gptjax.run.report.chart_style import BLUE, GREEN, GREY, ORANGE, Picture
from gptjax.run.report.chart_style import blank as _blank
from gptjax.run.report.chart_style import picture as _picture
from gptjax.run.report.chart_style import styled as _styled
from gptjax.run.report.series import Rows, course, number, series, smooth

_RAW_POINTS = 1200  # of a raw curve, which keeps a picture well under 100 kB
_PANELS = {  # smaller pictures: metric -> what it is (unit)
    "optim/grad_norm": "gradient norm",
    "optim/lr": "learning rate",
    "eval/end_rate": "held-out answers that end (fraction)",
    "ppo/policy_loss": "policy loss",
    "ppo/value_loss": "value loss",
    "ppo/clip_fraction": "clipped (fraction)",
    "ppo/entropy_nats_per_token": "entropy (nats/token)",
    "ppo/response_tokens": "response (tokens)",
    "ppo/end_rate": "rollouts that end (fraction)",
}


@_styled
def curve(rows: Rows, key: str, label: str, unit: str, *, held_out: str | None = None) -> Picture | None:
    """One training metric over the steps, raw thin and smoothed thick, with held-out points.

    Args:
        rows: the log.
        key: the metric.
        label: what it is, such as "loss".
        unit: its unit; "" for a fraction.
        held_out: the metric of the same kind on held-out data.
    """
    steps, values = series(rows, key)
    held_steps, held_values = series(rows, held_out) if held_out else (steps[:0], values[:0])
    if not len(values) and not len(held_values):
        return None
    figure, (axes,) = _blank()
    if len(values):
        _line(axes, steps, values, BLUE, f"training {label}")
    if len(held_values):
        axes.plot(held_steps, held_values, "o-", color=ORANGE, markersize=4, label=f"held-out {label}")
    axes.set(xlabel="update step", ylabel=f"{label} ({unit})" if unit else f"{label} (fraction)")
    axes.legend()
    sentence = course(f"The training {label}", steps, values, unit) if len(values) else ""
    if len(held_values):
        sentence += f"{'; held out it' if sentence else f'The held-out {label}'} ended at {held_values[-1]:.3g} {unit}"
    return _picture(figure, sentence.rstrip() + ".")


@_styled
def bits_per_byte(rows: Rows, evaluation: Mapping[str, Any]) -> Picture | None:
    """Held-out bits per byte over the steps, with what the xz compressor needs."""
    steps, values = series(rows, "eval/bits_per_byte")
    if not len(values):
        return None
    figure, (axes,) = _blank()
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.plot(steps, values, "o-", color=BLUE, markersize=4, label="model")
    caption = f"The model needs {values[-1]:.3g} bits per held-out byte at step {steps[-1]:,.0f}"
    if (n_bytes := number(evaluation.get("heldout_bytes"))) is not None:
        caption += f" ({n_bytes:,.0f} bytes)"
    xz = number(evaluation.get("xz_bits_per_byte"))
    if xz is not None:
        axes.axhline(xz, color=GREY, linestyle="--", label="xz compressor")
        caption += (
            f", {abs(values[-1] - xz):.3g} {'fewer' if values[-1] < xz else 'more'} than the xz compressor's {xz:.3g}"
        )
    axes.set(xlabel="update step", ylabel="held-out text (bits per byte)")
    axes.legend()
    return _picture(figure, caption + ".")


@_styled
def accuracy_bars(evaluation: Mapping[str, Any]) -> Picture | None:
    """The reward model's accuracy beside the best possible and beside judging by length."""
    names = {
        "accuracy": ("reward model,\nheld-out comparisons", BLUE),
        "sampled_pair_accuracy": ("reward model,\nsampled pairs", BLUE),
        "sampled_pair_bayes_accuracy": ("best possible (Bayes),\nsampled pairs", GREEN),
        "length_only_accuracy": ("length only", GREY),
    }
    bars = [(*names[key], value) for key in names if (value := number(evaluation.get(key))) is not None]
    if not bars:
        return None
    figure, (axes,) = _blank(height=0.9 + 0.5 * len(bars))
    labels, colours, values = zip(*bars, strict=True)
    axes.barh(range(len(bars)), values, color=colours, height=0.6)
    axes.set_yticks(range(len(bars)), labels)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    for i, value in enumerate(values):
        axes.text(
            value + 0.01, i, f"{value:.1%}", va="center", bbox={"facecolor": "#fafaf8", "edgecolor": "none", "pad": 1}
        )
    axes.axvline(0.5, color=ORANGE, linestyle="--", linewidth=1.2)
    axes.set_xlim(0, 1.1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.set_xlabel("pairs ordered correctly (fraction); dashed: a coin")
    parts = [f"{' '.join(label.split())} {value:.1%}" for label, _, value in bars]
    return _picture(figure, f"Pairs ordered correctly: {'; '.join(parts)}; a coin 50%.")


@_styled
def reliability(evaluation: Mapping[str, Any]) -> Picture | None:
    """How often the reward model is right among pairs of which it is equally sure."""
    keys = ("confidence", "accuracy", "count")
    cells = [[number(row.get(key)) for key in keys] for row in evaluation.get("reliability") or []]
    points = np.array([cell for cell in cells if None not in cell and cell[2]], np.float64).reshape(-1, 3)
    if not len(points):
        return None
    confidence, accuracy, count = points.T
    low = min(0.5, confidence.min(), accuracy.min()) - 0.02
    figure, (axes,) = _blank(height=3.4)
    axes.plot([low, 1], [low, 1], "--", color=GREY, linewidth=1.2, label="perfectly calibrated")
    axes.plot(confidence, accuracy, "-", color=BLUE, linewidth=1)
    axes.scatter(confidence, accuracy, s=15 + 160 * count / count.max(), color=BLUE, alpha=0.75, label="reward model")
    axes.set(xlabel="confidence in the preferred answer (probability)", ylabel="right (fraction of pairs)")
    axes.legend(loc="upper left")
    gap = float((np.abs(confidence - accuracy) * count).sum() / count.sum())
    caption = f"Confidence and accuracy differ by {gap:.3f} on average over {count.sum():,.0f} pairs"
    return _picture(figure, caption + "; the area of a dot grows with its number of pairs.")


@_styled
def rewards_and_kl(rows: Rows, evaluation: Mapping[str, Any]) -> Picture | None:
    """Gold reward, proxy reward and KL over the PPO steps, one above the other."""
    wanted = {
        "ppo/gold_score": ("gold reward", "reward units", GREEN),
        "ppo/score": ("proxy reward", "reward units", BLUE),
        "ppo/kl_nats_per_sequence": ("KL from the SFT model", "nats per answer", ORANGE),
    }
    start = number(evaluation.get("gold_sft"))
    before = [] if start is None else [{"step": 0, "ppo/gold_score": start}]  # PPO starts from the SFT model
    drawn = [(*wanted[key], *series([*before, *rows], key)) for key in wanted if len(series(rows, key)[1])]
    if not drawn:
        return None
    figure, all_axes = _blank(len(drawn), height=0.6 + 1.45 * len(drawn))
    target = number(evaluation.get("kl_target_nats"))
    for axes, (name, unit, colour, steps, values) in zip(all_axes, drawn, strict=True):
        _line(axes, steps, values, colour, None)
        axes.set(title=name, ylabel=unit)
        if unit == "nats per answer" and target is not None:
            axes.axhline(target, color=GREY, linestyle="--", linewidth=1.2, label=f"target {target:.3g} nats")
            axes.legend()
    all_axes[-1].set_xlabel("update step")
    parts = [course(name, steps, values, unit) for name, unit, _, steps, values in drawn]
    return _picture(figure, ("; ".join(parts) + ".").replace("gold", "Gold", 1))


@_styled
def frontier(rows: Rows, evaluation: Mapping[str, Any]) -> Picture | None:
    """Gold reward against the square root of KL: PPO's path, its last policy, and best of n."""
    path = ("eval/kl_nats", "ppo/gold_score")
    both = [row for row in rows if None not in (number(row.get(key)) for key in path)]
    path_kl, path_gold = (series(both, key)[1] for key in path)
    cells = [[number(row.get(k)) for k in ("kl_nats", "gold", "n")] for row in evaluation.get("best_of_n") or []]
    best = np.array(sorted(cell for cell in cells if None not in cell), np.float64).reshape(-1, 3)
    kl, gold, gold_sft = (number(evaluation.get(key)) for key in ("kl_nats", "gold_ppo", "gold_sft"))
    if not len(path_gold) and not len(best) and (kl is None or gold is None):
        return None
    figure, (axes,) = _blank(height=3.4)
    parts = []
    if len(path_gold):
        axes.plot(
            _root(path_kl),
            path_gold,
            ".-",
            color=BLUE,
            alpha=0.45,
            linewidth=1,
            markersize=3,
            label="PPO while training",
        )
    if gold_sft is not None:
        axes.plot(0, gold_sft, "s", color=GREY, label="SFT model")
    if kl is not None and gold is not None:
        axes.plot(_root(kl), gold, "*", color=BLUE, markersize=13, label="PPO, held-out prompts")
        parts.append(f"PPO's gold reward is {gold:.3g} at a KL of {kl:.3g} nats (square root {_root(kl):.3g})")
    if len(best):
        axes.plot(_root(best[:, 0]), best[:, 1], "o-", color=ORANGE, markersize=4, label="best of n")
        for kl_n, gold_n, n in best:
            axes.annotate(
                f"{n:.0f}", (_root(kl_n), gold_n), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8
            )
        top = best[best[:, 1].argmax()]
        parts.append(f"best of {top[2]:.0f} reaches {top[1]:.3g} at {top[0]:.3g} nats")
    axes.set(xlabel="square root of KL from the SFT model (√nats)", ylabel="gold reward (reward units)")
    axes.margins(y=0.12)
    axes.legend()
    return _picture(
        figure, ("; ".join(parts) or f"PPO's training path ends at a gold reward of {path_gold[-1]:.3g}") + "."
    )


@_styled
def panels(rows: Rows) -> Picture | None:
    """Small pictures of the remaining metrics: optimisation and, for PPO, its losses and responses."""
    drawn = [(label, *series(rows, key)) for key, label in _PANELS.items() if len(series(rows, key)[1])]
    if not drawn:
        return None
    n_rows = (len(drawn) + 1) // 2
    figure, all_axes = _blank(n_rows, 2, height=0.4 + 1.5 * n_rows)
    for axes, (label, steps, values) in zip(all_axes, drawn, strict=False):
        _line(axes, steps, values, BLUE, None)
        axes.set_title(label)
        axes.locator_params(axis="x", nbins=4)
    for axes in all_axes[max(0, len(drawn) - 2) : len(drawn)]:
        axes.set_xlabel("update step")
    for axes in all_axes[len(drawn) :]:
        axes.remove()
    last = ", ".join(f"{label.split(' (')[0]} {values[-1]:.3g}" for label, _, values in drawn)
    return _picture(figure, f"Last values, at step {max(steps[-1] for _, steps, _ in drawn):,.0f}: {last}.")


def _line(axes: Any, steps: np.ndarray, values: np.ndarray, colour: str, label: str | None) -> None:
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    if len(values) < 20:
        axes.plot(steps, values, "o-", color=colour, markersize=3, label=label)
        return
    stride = -(-len(values) // _RAW_POINTS)
    axes.plot(steps[::stride], values[::stride], color=colour, alpha=0.35, linewidth=0.6)
    axes.plot(steps[::stride], smooth(values)[::stride], color=colour, label=label)


def _root(kl: Any) -> Any:
    """An estimate of a small KL may be below zero."""
    return np.sqrt(np.maximum(kl, 0.0))
