"""What the report says of a stage's figures: titles, headlines and sentences."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from gptjax.run.progress import duration
from gptjax.run.report.series import number

Figures: TypeAlias = Mapping[str, Any]  # a stage's evaluation
Forms: TypeAlias = Mapping[str, str]  # name of a figure -> how it is said

TITLES = {
    "lm": "Language model",
    "mlm": "Masked language model",
    "sft": "Supervised fine-tuning",
    "reward": "Reward model",
    "ppo": "PPO",
    "dpo": "DPO",
    "grpo": "GRPO",
    "rejection": "Rejection sampling",
}
_HEADLINES = {
    "lm": ("bits_per_byte", "{:.3g} bits per byte"),
    "mlm": ("accuracy", "{:.1%} of selected tokens guessed"),
    "sft": ("nats_per_token", "{:.3g} nats per token"),
    "reward": ("accuracy", "{:.1%} ordered correctly"),
    "ppo": ("gold_gain", "{:+.3g} gold reward"),
    "dpo": ("accuracy", "{:.1%} ordered correctly"),
    "grpo": ("gold_gain", "{:+.3g} gold reward"),
    "rejection": ("nats_per_token", "{:.3g} nats per token"),
}
_OUTCOMES: dict[str, Forms] = {
    "lm": {
        "bits_per_byte": "the language model needs {:.3g} bits per byte of held-out text",
        "xz_bits_per_byte": "against {:.3g} for the xz compressor",
    },
    "mlm": {
        "accuracy": "the masked language model guesses {:.1%} of the selected held-out tokens",
        "nats_per_token": "at {:.3g} nats each",
    },
    "sft": {
        "end_rate": "after fine-tuning {:.1%} of answers end on their own",
        "nats_per_token": "and held-out answers cost {:.3g} nats per token",
    },
    "reward": {
        "accuracy": "the reward model orders {:.1%} of held-out comparisons correctly",
        "sampled_pair_accuracy": "on sampled pairs it is right on {:.1%}",
        "sampled_pair_bayes_accuracy": "where {:.1%} is the best possible",
        "length_only_accuracy": "and going by length gives {:.1%}",
    },
}
_PACKING = {"packing_fill": "rows are {:.1%} full", "packing_dropped_tokens": "{:,.0f} tokens were left out of them"}
_DETAILS: dict[str, Forms] = {
    "lm": _PACKING,
    "mlm": _PACKING,
    "sft": {
        "conversations_truncated": "{:,.0f} conversations were cut",
        "conversations_dropped": "{:,.0f} left out, as no target would have remained",
    },
    "reward": {
        "nll": "negative log-likelihood {:.3g} nats per pair",
        "brier": "Brier score {:.3g}",
        "ece": "expected calibration error {:.3g}",
        "length_correlation": "correlation of score with length {:+.2f}",
    },
    "dpo": {
        "accuracy": "held-out pairs: {:.1%} ordered correctly",
        "margin": "margin {:.3g}",
        "kl_nats": "KL from the SFT model {:.3g} nats per answer",
        "gold_gain": "gold reward {:+.3g} from SFT",
    },
    "grpo": {
        "proxy_sft": "proxy reward {:.3g} before",
        "proxy_grpo": "{:.3g} after GRPO",
        "end_rate_sft": "answers that end on their own: {:.1%} before",
        "end_rate_grpo": "{:.1%} after",
    },
    "rejection": {
        "proxy_samples": "proxy reward of all samples {:.3g}",
        "proxy_winners": "of the winners {:.3g}",
        "end_rate": "{:.1%} of answers end on their own after fine-tuning",
    },
    "ppo": {
        "proxy_sft": "proxy reward {:.3g} before PPO",
        "proxy_ppo": "{:.3g} after",
        "end_rate_sft": "answers that end on their own: {:.1%} before",
        "end_rate_ppo": "{:.1%} after",
        "bits_per_byte_sft": "held-out text: {:.3g} bits per byte before",
        "bits_per_byte_ppo": "{:.3g} after",
    },
}


def headline(task: str, figures: Figures) -> str:
    """The stage's one figure for the table; "" without it."""
    name, form = _HEADLINES.get(task, ("", ""))
    value = number(figures.get(name))
    return "" if value is None else form.format(value)


def sentence(task: str, figures: Figures) -> str:
    """The stage's outcome in a sentence without its full stop, from the figures that are there."""
    if task in ("ppo", "grpo"):
        return _policy_sentence(task, figures)
    return _joined(_OUTCOMES.get(task, {}), figures)


def details(task: str, figures: Figures) -> str:
    """The remaining figures in a line without its full stop."""
    return _joined(_DETAILS.get(task, {}), figures)


def time_use(seconds: Figures) -> str:
    """Where the time went, the largest uses first, without the full stop; uses below a hundredth are left out."""
    uses = sorted(((number(value) or 0.0, use) for use, value in seconds.items()), reverse=True)
    whole = sum(value for value, _ in uses)
    if whole <= 0:
        return ""
    shares = [f"{use} {value / whole:.0%}" for value, use in uses if value >= 0.01 * whole]
    return f"Time: {', '.join(shares)} of {duration(whole)}"


def count(value: Any) -> str:
    """1234567 -> "1.23 M"; "-" if it is no number."""
    found = number(value)
    if found is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(found) >= size:
            return f"{found / size:.3g} {unit}"
    return f"{found:,.0f}"


def _policy_sentence(task: str, figures: Figures) -> str:
    forms = {
        f"gold_{task}": f"after {TITLES[task]} the gold reward is {{:.3g}}",
        "gold_sft": "against {:.3g} before it",
        "gold_gain": "a gain of {:.3g}",
        "kl_nats": "at a KL of {:.3g} nats",
    }
    text = _joined(forms, figures)
    interval = figures.get("gold_gain_ci")
    bounds = [number(bound) for bound in interval] if isinstance(interval, list) else []
    if text and len(bounds) == 2 and bounds[0] is not None and bounds[1] is not None:
        text += f"; the confidence interval of the gain is {bounds[0]:.3g} to {bounds[1]:.3g}"
        text += ", which includes no gain at all" if bounds[0] <= 0 <= bounds[1] else ""
    return text


def _joined(forms: Forms, figures: Figures) -> str:
    values = {name: number(figures.get(name)) for name in forms}
    text = ", ".join(forms[name].format(value) for name, value in values.items() if value is not None)
    return text[:1].upper() + text[1:]
