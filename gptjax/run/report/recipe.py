"""The report of a recipe: one self-contained HTML file about whatever its stages have left so far."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.files import write_atomically
from gptjax.run.metrics import read_metrics
from gptjax.run.progress import duration
from gptjax.run.report import charts, words
from gptjax.run.report import html as pieces
from gptjax.run.report.charts import Picture
from gptjax.run.report.series import number

_HOW_TO_READ = (
    "Thin lines are logged values, thick lines running means; where a caption says that something fell or rose, it "
    "compares the means over the first and the last twentieth of the run."
)
_SHOWN = 20  # answers or samples of a stage
_EXAMINED = ("ppo", "grpo", "dpo")  # tasks whose answers stand beside those of the model they started from


class Stage(NamedTuple):
    """What one stage left: its log, its result and config, and sentences on what is missing."""

    name: str
    task: str
    rows: list[dict[str, Any]]
    result: dict[str, Any]
    evaluation: dict[str, Any]
    config: str
    missing: list[str]
    criteria: list[dict[str, Any]]


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
    parts += [_criteria_table(stages)] if any(stage.criteria for stage in stages) else []
    parts += [pieces.paragraph(_HOW_TO_READ)] if any(stage.rows for stage in stages) else []
    parts += [_section(stage) for stage in stages]
    configs = [pieces.folded(stage.name, stage.config) for stage in stages if stage.config]
    parts += [pieces.heading("Configs"), *configs] if configs else []
    path = workdir / "report.html"
    write_atomically(path, pieces.page(f"{recipe.get('name', workdir.name)}: training report", parts))
    return path


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
    criteria = [entry for entry in result.get("criteria") or [] if isinstance(entry, dict)]
    return Stage(name, str(result.get("task", name)), rows, result, evaluation, config, missing, criteria)


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
    outcomes = [words.sentence(stage.task, stage.evaluation) for stage in stages]
    sentences = ["".join(parts), *filter(None, outcomes)]
    unfinished = [stage.name for stage in stages if stage.missing]
    sentences += (
        [f"Something is missing from {', '.join(unfinished)}; the sections below say what"] if unfinished else []
    )
    return pieces.paragraph(". ".join(sentences) + ".")


def _stage_table(stages: Sequence[Stage]) -> str:
    cells = []
    for stage in stages:
        seconds = number(stage.result.get("seconds"))
        counts = [words.count(stage.result.get(key)) for key in ("steps", "tokens", "parameters")]
        time = duration(seconds) if seconds is not None else "-"
        cells.append([stage.name, _outcome(stage), time, *counts])
    heads = ("stage", "result", "time", "updates", "tokens", "parameters")
    return pieces.table(heads, cells, numbers=(2, 3, 4, 5))


def _criteria_table(stages: Sequence[Stage]) -> str:
    """What the stages had to show, as their experiment says, and whether they did."""
    rows = []
    for stage in stages:
        for entry in stage.criteria:
            value = number(entry.get("value"))
            shown = "absent" if value is None else f"{value:.4g}"
            wanted = [str(entry.get(key, "-")) for key in ("figure", "bounds")]
            rows.append([stage.name, *wanted, shown, "met" if entry.get("met") else "missed"])
    heads = ("stage", "figure", "wanted", "found", "")
    return pieces.heading("Criteria") + pieces.table(heads, rows, numbers=(3,))


def _outcome(stage: Stage) -> str:
    if headline := words.headline(stage.task, stage.evaluation):
        return headline
    return "finished" if stage.result else f"stopped at step {stage.rows[-1]['step']:,}" if stage.rows else "not begun"


def _section(stage: Stage) -> str:
    title = words.TITLES.get(stage.task, stage.task)
    parts = [pieces.heading(title if stage.name == stage.task else f"{title} ({stage.name})")]
    parts += [pieces.note(sentence + ".") for sentence in stage.missing]
    if sentence := words.sentence(stage.task, stage.evaluation):
        parts.append(pieces.paragraph(sentence + "."))
    parts += [pieces.figure(picture) for picture in _pictures(stage) if picture]
    if details := words.details(stage.task, stage.evaluation):
        parts.append(pieces.paragraph(details + "."))
    uses = stage.result.get("seconds_by_use")
    if isinstance(uses, dict) and (sentence := words.time_use(uses)):
        parts.append(pieces.paragraph(sentence + "."))
    return "\n".join([*parts, _texts(stage)])


def _pictures(stage: Stage) -> list[Picture | None]:
    rows, evaluation = stage.rows, stage.evaluation
    if stage.task == "lm":
        drawn = [
            charts.curve(rows, "lm/nats_per_token", "loss", "nats per token"),
            charts.bits_per_byte(rows, evaluation),
        ]
    elif stage.task == "mlm":
        drawn = [
            charts.curve(rows, "mlm/nats_per_token", "loss", "nats per token", held_out="eval/nats_per_token"),
            charts.curve(rows, "mlm/accuracy", "accuracy", "", held_out="eval/accuracy"),
        ]
    elif stage.task in ("sft", "rejection"):
        drawn = [charts.curve(rows, "sft/nats_per_token", "loss", "nats per token", held_out="eval/nats_per_token")]
    elif stage.task == "reward":
        drawn = [
            charts.curve(rows, "reward/loss_nats", "loss", "nats per comparison"),
            charts.curve(rows, "reward/accuracy", "accuracy", "", held_out="eval/accuracy"),
            charts.accuracy_bars(evaluation),
            charts.reliability(evaluation),
        ]
    elif stage.task == "dpo":
        drawn = [
            charts.curve(rows, "dpo/loss", "loss", "nats per pair", held_out="eval/loss"),
            charts.curve(rows, "dpo/accuracy", "accuracy", "", held_out="eval/accuracy"),
            charts.curve(rows, "dpo/margin", "margin", "nats times beta", held_out="eval/margin"),
            charts.curve(rows, "dpo/logp_chosen_nats", "log-probability of the chosen", "nats"),
        ]
    elif stage.task == "grpo":
        drawn = [
            charts.curve(rows, "grpo/score", "proxy reward", "reward units", held_out="eval/proxy_score"),
            charts.curve(rows, "grpo/kl_nats_per_sequence", "KL", "nats per answer", held_out="eval/kl_nats"),
            charts.curve(rows, "grpo/constant_group_fraction", "share of groups without a difference", ""),
        ]
    else:
        drawn = [charts.rewards_and_kl(rows, evaluation), charts.frontier(rows, evaluation)]
    return [*drawn, charts.panels(rows)]


def _texts(stage: Stage) -> str:
    """What the stage's model wrote: samples, or answers beside the reference."""
    samples = [str(sample) for sample in stage.evaluation.get("samples") or []]
    answers = [answer for answer in stage.evaluation.get("answers") or [] if isinstance(answer, dict)]
    parts = [pieces.heading("Samples", level=3), *map(pieces.quotation, samples[:_SHOWN])] if samples else []
    if answers:
        before_after = stage.task in _EXAMINED
        rows = [_before_after(answer, stage.task) if before_after else _answer(answer) for answer in answers[:_SHOWN]]
        title = words.TITLES.get(stage.task, stage.task)
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
