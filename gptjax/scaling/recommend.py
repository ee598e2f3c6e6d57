"""From a fitted law and a budget to a model to train, with what it is worth and what smaller ones would cost."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gptjax.choices import check_numbers
from gptjax.model.config import ModelConfig
from gptjax.scaling.accounting import PARAMETER_CONVENTIONS, counts
from gptjax.scaling.bootstrap import interval
from gptjax.scaling.fit import Fit
from gptjax.scaling.rules import Setting, critical_batch, deepseek_law, own_rule, step_law

FAR = 10.0  # times the largest compute fitted: beyond it a recommendation is marked as a guess


@dataclass(frozen=True, kw_only=True)
class ShapeRule:
    """How a number of parameters becomes a shape, with swiglu and an unembedding of its own.

    parameters: which count is matched.  vocab_size: of the model.  head_width: of attention.
    aspect: width over layers aimed at.  layers: of the shape, whatever its aspect (None: those of the runs where all
    have one depth, because their law says nothing of another; else as the aspect has it).
    """

    parameters: str = "matmul"
    vocab_size: int = 32_768
    head_width: int = 128
    aspect: float = 100.0
    layers: int | None = None

    def __post_init__(self) -> None:
        if self.parameters not in PARAMETER_CONVENTIONS:
            raise ValueError(f"parameters {self.parameters!r}: choose one of {', '.join(PARAMETER_CONVENTIONS)}")
        check_numbers(self, at_least_1=("vocab_size", "head_width", "layers"), positive=("aspect",))


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A smaller or larger model trained until it is as good as the optimum.

    n, d: parameters and tokens (None: it is never as good).  compute: of that, over the budget.
    same_compute_loss: what it reaches on the budget instead.
    """

    n: float
    d: float | None
    compute: float | None
    same_compute_loss: float


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The optimum at a budget with 80 % and 95 % intervals by name (n, d, tokens_per_parameter, loss).

    ratio: budget over the largest compute fitted.  k: FLOPs for each parameter and token.  shape: a model of about n
    parameters.  settings: batch and learning rate by rule.  warnings: begin with those of the fit.
    """

    flops: float
    ratio: float
    k: float
    values: dict[str, float]
    intervals: dict[str, dict[str, tuple[float, float]]]
    alternatives: tuple[Alternative, ...]
    shape: ModelConfig
    shape_parameters: int
    settings: tuple[Setting, ...]
    warnings: tuple[str, ...]

    def asdict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        plain: dict[str, Any] = {"flops": self.flops, "compute_ratio": self.ratio, "flops_per_parameter_token": self.k}
        plain |= self.values | {"intervals": self.intervals, "warnings": list(self.warnings)}
        plain["alternatives"] = [vars(alternative) for alternative in self.alternatives]
        plain["settings"] = [vars(setting) for setting in self.settings]
        names = ("layers", "width", "heads", "head_width", "hidden", "vocab_size", "activation", "tied")
        shape = {name: getattr(self.shape, name) for name in names} | {"parameters": self.shape_parameters}
        return plain | {"shape": shape}


def recommend(fitted: Fit, flops: float, rule: ShapeRule | None = None) -> Recommendation:
    """What to train with `flops`.

    Args:
        fitted: a law with its draws.
        flops: the budget, counted as the runs' `flops` are.
        rule: how the size becomes a shape.

    Raises:
        ValueError: the budget is not positive.
    """
    if flops <= 0:
        raise ValueError(f"flops must be positive, got {flops:g}")
    rule = rule or ShapeRule()
    depths = fitted.runs.values("layers")
    if rule.layers is None and depths is not None and len(set(depths)) == 1:
        rule = replace(rule, layers=int(depths[0]))
    k = fitted.runs.flops_per_parameter_token
    n, d = (float(x) for x in fitted.law.optimum(flops, k))
    loss = float(fitted.law.loss(n, d))
    n_draws, d_draws = fitted.optimum_draws(flops)
    drawn = {"n": n_draws, "d": d_draws, "tokens_per_parameter": d_draws / n_draws}
    drawn["loss"] = fitted.draws.loss(n_draws, d_draws)
    intervals = {
        name: {f"{level:.0%}": interval(values, level) for level in (0.8, 0.95)} for name, values in drawn.items()
    }  # fmt: skip
    shape, parameters = shape_of(n, rule)
    settings = [own_rule(fitted.runs, d), step_law(counts(shape).non_embedding, d), deepseek_law(flops)]
    return Recommendation(
        flops=flops,
        ratio=flops / float(fitted.runs.c.max()),
        k=k,
        values={"n": n, "d": d, "tokens_per_parameter": d / n, "loss": loss},
        intervals=intervals,
        alternatives=tuple(_alternative(fitted, n * factor, flops, loss, k) for factor in (2, 1, 0.7, 0.5, 0.35, 0.25)),
        shape=shape,
        shape_parameters=parameters,
        settings=(*(setting for setting in settings if setting), critical_batch(loss)),
        warnings=_warnings(fitted, flops, n, parameters),
    )


def _alternative(fitted: Fit, n: float, flops: float, loss: float, k: float) -> Alternative:
    d = float(fitted.law.tokens_for(n, loss))
    reached = np.isfinite(d)
    return Alternative(
        n=n,
        d=d if reached else None,
        compute=k * n * d / flops if reached else None,
        same_compute_loss=float(fitted.law.loss(n, flops / (k * n))),
    )


def shape_of(n: float, rule: ShapeRule) -> tuple[ModelConfig, int]:
    """The model whose count is nearest to `n` among those of the rule's depth or about its aspect, and that count."""
    widths = rule.head_width * np.arange(1, 1 + int(np.clip(40_000 // rule.head_width, 1, 4000)))
    best: tuple[float, ModelConfig | None, int] = (np.inf, None, 0)
    for width in widths.tolist():
        for layers in _depths(width, rule):
            if 8 * layers * width**2 > 4 * n and best[1] is not None:
                continue
            config = _model(layers, width, rule)
            count = getattr(counts(config), rule.parameters)
            misfit = abs(np.log(count / n))
            if rule.layers is None:
                misfit += 0.1 * abs(np.log(width / layers / rule.aspect))
            if misfit < best[0]:
                best = (misfit, config, count)
    assert best[1] is not None
    return best[1], best[2]


def _depths(width: int, rule: ShapeRule) -> set[int]:
    if rule.layers is not None:
        return {rule.layers}
    target = max(1, round(width / rule.aspect))
    return {max(1, round(target * factor)) for factor in (0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 1.7)}


def _model(layers: int, width: int, rule: ShapeRule) -> ModelConfig:
    hidden = -(-8 * width // 3 // 64) * 64
    return ModelConfig(
        vocab_size=rule.vocab_size, layers=layers, width=width, heads=width // rule.head_width, hidden=hidden,
        activation="swiglu", tied=False,
    )  # fmt: skip


def _warnings(fitted: Fit, flops: float, n: float, parameters: int) -> tuple[str, ...]:
    found = list(fitted.warnings)
    ratio = flops / float(fitted.runs.c.max())
    if ratio > FAR:
        found.append(
            f"{flops:.3g} FLOPs are {ratio:.3g} times the largest run's {fitted.runs.c.max():.3g}: beyond "
            f"{FAR:g} times no held-out run supports an extrapolation"
        )
    if not 0.8 < parameters / n < 1.25:
        found.append(f"no shape of this rule has about {n:.3g} parameters; the nearest has {parameters:.3g}")
    return tuple(found)
