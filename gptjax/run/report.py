"""The report of a recipe: one self-contained HTML file about whatever its stages have left so far."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.run import report_charts as charts
from gptjax.run import report_html as pieces
from gptjax.run import report_policies as policies
from gptjax.run.metrics import read_metrics
from gptjax.run.progress import duration
from gptjax.run.report_charts import Picture
from gptjax.run.series import number

_TITLES = {"lm": "Language model", "sft": "Supervised fine-tuning", "reward": "Reward model", "ppo": "PPO"}
_TITLES |= policies.TITLES
_DETAILS = {
    "reward": {
        "nll": "negative log-likelihood {:.3g} nats per pair",
        "brier": "Brier score {:.3g}",
        "ece": "expected calibration error {:.3g}",
        "length_correlation": "correlation of score with length {:+.2f}",
    },
    "ppo": {
        "proxy_sft": "proxy reward {:.3g} before PPO",
        "proxy_ppo": "{:.3g} after",
        "end_rate_sft": "answers that end on their own: {:.1%} before",
        "end_rate_ppo": "{:.1%} after",
    },
} | policies.DETAILS
_HOW_TO_READ = (
    "Thin lines are logged values, thick lines running means; where a caption says that something fell or rose, it "
    "compares the means over the first and the last twentieth of the run."
)
_SHOWN = 20  # answers or samples of a stage


class Stage(NamedTuple):
    """What one stage left: its log, its result and config, and sentences on what is missing."""

    name: str
    task: str
    rows: list[dict[str, Any]]
    result: dict[str, Any]
    evaluation: dict[str, Any]
    config: str
    missing: list[str]


def write_report(workdir: Path) -> Path:
    """Write `report.html` from the logs and results of a recipe's stages; say what is missing where a stage is.

    Args:
        workdir: holds `recipe.json` and a folder for each stage.

    Returns:
        The path of the report.

    Raises:
        ValueError: `recipe.json` is absent or does not list the stages.
    """
    workdir = Path(workdir)
    recipe = _recipe(workdir / "recipe.json")
    stages = [_stage(workdir / name, name) for name in recipe["stages"]]
    parts = [_summary(recipe, stages), _stage_table(stages)]
    parts += [pieces.paragraph(_HOW_TO_READ)] if any(stage.rows for stage in stages) else []
    parts += [_section(stage) for stage in stages]
    configs = [pieces.folded(stage.name, stage.config) for stage in stages if stage.config]
    parts += [pieces.heading("Configs"), *configs] if configs else []
    path = workdir / "report.html"
    temporary = path.with_name("report.html.tmp")
    temporary.write_text(pieces.page(f"{recipe.get('name', workdir.name)}: training report", parts), encoding="utf-8")
    return temporary.replace(path)


def _recipe(path: Path) -> dict[str, Any]:
    recipe, problem = _json(path)
    names = recipe.get("stages")
    if problem or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: {problem or 'lists no stages'}; give the folder that `gptjax run` wrote to")
    return recipe


def _stage(folder: Path, name: str) -> Stage:
    result, problem = _json(folder / "result.json")
    missing = (
        [f"{name}/result.json {problem}: the stage has not finished, so its final figures are absent"]
        if problem
        else []
    )
    rows: list[dict[str, Any]] = []
    try:
        rows = read_metrics(folder / "metrics.jsonl")
    except FileNotFoundError:
        missing.append(f"{name}/metrics.jsonl is absent: there are no curves")
    except ValueError as error:
        missing.append(f"The log cannot be read: {error}")
    config_path = folder / "config.txt"
    config = config_path.read_text(encoding="utf-8", errors="replace") if config_path.exists() else ""
    if not config:
        missing.append(f"{name}/config.txt is absent")
    if not folder.exists():
        missing = [f"The folder {name} is absent: the stage has not begun"]
    evaluation = result.get("evaluation")
    evaluation = evaluation if isinstance(evaluation, dict) else {}
    return Stage(name, str(result.get("task", name)), rows, result, evaluation, config, missing)


def _json(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a file, or {} with what is wrong."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, "is absent"
    except ValueError as error:
        return {}, f"is not JSON ({error})"
    return (value, "") if isinstance(value, dict) else ({}, "is not a JSON object")


def _summary(recipe: Mapping[str, Any], stages: Sequence[Stage]) -> str:
    done = [stage for stage in stages if stage.result]
    seconds = sum(number(stage.result.get("seconds")) or 0.0 for stage in done)
    parts = [f"{len(done)} of {len(stages)} stages are finished, in {duration(seconds)} of training"]
    parts += [f" on {recipe['devices']}"] if recipe.get("devices") else []
    versions = [f"{label} {recipe[key]}" for key, label in (("python", "Python"), ("jax", "JAX")) if recipe.get(key)]
    parts += [f" ({', '.join(versions)})"] if versions else []
    sentences = ["".join(parts)] + [sentence for stage in stages if (sentence := _sentence(stage))]
    unfinished = [stage.name for stage in stages if stage.missing]
    sentences += (
        [f"Something is missing from {', '.join(unfinished)}; the sections below say what"] if unfinished else []
    )
    return pieces.paragraph(". ".join(sentences) + ".")


def _sentence(stage: Stage) -> str:
    """The stage's outcome in words, from the figures that are there."""
    figure = {key: number(value) for key, value in stage.evaluation.items()}
    if stage.task == "lm":
        return _joined(
            ("The language model needs {:.3g} bits per byte of held-out text", figure.get("bits_per_byte")),
            ("against {:.3g} for the xz compressor", figure.get("xz_bits_per_byte")),
        )
    if stage.task == "sft":
        return _joined(
            ("After fine-tuning {:.1%} of answers end on their own", figure.get("end_rate")),
            ("and held-out answers cost {:.3g} nats per token", figure.get("nats_per_token")),
        )
    if stage.task == "reward":
        return _joined(
            ("The reward model orders {:.1%} of held-out comparisons correctly", figure.get("accuracy")),
            ("on sampled pairs it is right on {:.1%}", figure.get("sampled_pair_accuracy")),
            ("where {:.1%} is the best possible", figure.get("sampled_pair_bayes_accuracy")),
            ("and going by length gives {:.1%}", figure.get("length_only_accuracy")),
        )
    return _ppo_sentence(stage.evaluation) if stage.task == "ppo" else ""


def _ppo_sentence(evaluation: Mapping[str, Any]) -> str:
    text = _joined(
        ("After PPO the gold reward is {:.3g}", number(evaluation.get("gold_ppo"))),
        ("against {:.3g} before it", number(evaluation.get("gold_sft"))),
        ("a gain of {:.3g}", number(evaluation.get("gold_gain"))),
        ("at a KL of {:.3g} nats", number(evaluation.get("kl_nats"))),
    )
    interval = evaluation.get("gold_gain_ci")
    bounds = [number(bound) for bound in interval] if isinstance(interval, list) else []
    if text and len(bounds) == 2 and bounds[0] is not None and bounds[1] is not None:
        text += f"; the confidence interval of the gain is {bounds[0]:.3g} to {bounds[1]:.3g}"
        text += ", which includes no gain at all" if bounds[0] <= 0 <= bounds[1] else ""
    return text


def _joined(*parts: tuple[str, float | None]) -> str:
    text = ", ".join(form.format(value) for form, value in parts if value is not None)
    return text[:1].upper() + text[1:]


def _stage_table(stages: Sequence[Stage]) -> str:
    cells = []
    for stage in stages:
        seconds = number(stage.result.get("seconds"))
        counts = [_count(stage.result.get(key)) for key in ("steps", "tokens", "parameters")]
        time = duration(seconds) if seconds is not None else "-"
        cells.append([stage.name, _headline(stage), time, *counts])
    heads = ("stage", "result", "time", "updates", "tokens", "parameters")
    return pieces.table(heads, cells, numbers=(2, 3, 4, 5))


def _headline(stage: Stage) -> str:
    key, form = {
        "lm": ("bits_per_byte", "{:.3g} bits per byte"),
        "sft": ("nats_per_token", "{:.3g} nats per token"),
        "reward": ("accuracy", "{:.1%} ordered correctly"),
        "ppo": ("gold_gain", "{:+.3g} gold reward"),
        **policies.HEADLINES,
    }.get(stage.task, ("", ""))
    value = number(stage.evaluation.get(key))
    if value is not None:
        return form.format(value)
    return "finished" if stage.result else f"stopped at step {stage.rows[-1]['step']:,}" if stage.rows else "not begun"


def _count(value: Any) -> str:
    """1234567 -> "1.23 M"."""
    count = number(value)
    if count is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,.0f}"


def _section(stage: Stage) -> str:
    title = _TITLES.get(stage.task, stage.task)
    parts = [pieces.heading(title if stage.name == stage.task else f"{title} ({stage.name})")]
    parts += [pieces.note(sentence + ".") for sentence in stage.missing]
    if sentence := _sentence(stage):
        parts.append(pieces.paragraph(sentence + "."))
    parts += [pieces.figure(picture) for picture in _pictures(stage) if picture]
    return "\n".join([*parts, _details(stage), _texts(stage)])


def _pictures(stage: Stage) -> list[Picture | None]:
    rows, evaluation = stage.rows, stage.evaluation
    if stage.task == "lm":
        drawn = [
            charts.curve(rows, "lm/nats_per_token", "loss", "nats per token"),
            charts.bits_per_byte(rows, evaluation),
        ]
    elif stage.task == "sft":
        drawn = [charts.curve(rows, "sft/nats_per_token", "loss", "nats per token", held_out="eval/nats_per_token")]
    elif stage.task == "reward":
        drawn = [
            charts.curve(rows, "reward/loss_nats", "loss", "nats per comparison"),
            charts.curve(rows, "reward/accuracy", "accuracy", "", held_out="eval/accuracy"),
            charts.accuracy_bars(evaluation),
            charts.reliability(evaluation),
        ]
    elif stage.task in policies.TITLES:
        drawn = policies.pictures(stage.task, rows)
    else:
        drawn = [charts.rewards_and_kl(rows, evaluation), charts.frontier(rows, evaluation)]
    return [*drawn, charts.panels(rows)]


def _details(stage: Stage) -> str:
    """The remaining figures in a line."""
    forms = _DETAILS.get(stage.task, {})
    text = _joined(*((form, number(stage.evaluation.get(key))) for key, form in forms.items()))
    return pieces.paragraph(text + ".") if text else ""


def _texts(stage: Stage) -> str:
    """What the stage's model wrote: samples, or answers beside the reference."""
    samples = [str(sample) for sample in stage.evaluation.get("samples") or []]
    answers = [answer for answer in stage.evaluation.get("answers") or [] if isinstance(answer, dict)]
    parts = [pieces.heading("Samples", level=3), *map(pieces.quotation, samples[:_SHOWN])] if samples else []
    if answers:
        before_after, title = stage.task in ("ppo", "dpo", "grpo"), _TITLES.get(stage.task, "")
        rows = [_before_after(answer, stage.task) if before_after else _answer(answer) for answer in answers[:_SHOWN]]
        heads = ("prompt", "reference", *((f"before {title}", f"after {title}") if before_after else ("answer",)))
        parts += [pieces.heading("Answers before and after" if before_after else "Answers", level=3)]
        parts += [pieces.table(heads, rows, cards=True)]
    hidden = max(len(samples), len(answers)) - _SHOWN
    return "\n".join(
        parts + ([pieces.paragraph(f"{hidden} more are in {stage.name}/result.json.")] if hidden > 0 else [])
    )


def _answer(answer: Mapping[str, Any]) -> list[str]:
    return [str(answer.get(key, "-")) for key in ("prompt", "reference", "answer")]


def _before_after(answer: Mapping[str, Any], task: str) -> list[str]:
    cells = [str(answer.get(key, "-")) for key in ("prompt", "reference", "sft", task)]
    for i, key in ((2, "gold_sft"), (3, f"gold_{task}")):
        gold = number(answer.get(key))
        cells[i] += f"\n(gold reward {gold:.3g})" if gold is not None else ""
    return cells
