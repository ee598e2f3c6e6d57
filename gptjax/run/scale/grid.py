"""Sweeps: trunks of constant learning rate with decay branches, and the grids that they come from."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import decay_steps
from gptjax.run.experiment import Experiment, Recipe
from gptjax.scaling.accounting import flops_per_token

Template = Callable[[ModelConfig, int], Experiment]  # (model, tokens of a batch) -> a run whose steps are set later


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """One model trained once, with a decay branch for every horizon.

    name: of its folder.  experiment: the run to the last horizon, with schedule wsd.  horizons: steps, rising.
    budgets: nominal FLOPs of each horizon, for people; rows hold the achieved ones.
    """

    name: str
    experiment: Experiment
    horizons: tuple[int, ...]
    budgets: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.experiment.optimizer.schedule != "wsd":
            raise ValueError(
                f"trunk {self.name}: optimizer.schedule must be wsd, not {self.experiment.optimizer.schedule}"
            )
        if not self.horizons or len(self.horizons) != len(self.budgets):
            raise ValueError(f"trunk {self.name}: {len(self.horizons)} horizons for {len(self.budgets)} budgets")
        points = [0, *(self.branch_point(steps) for steps in self.horizons)]
        if any(later <= earlier for earlier, later in itertools.pairwise(points)):
            raise ValueError(f"trunk {self.name}: horizons {self.horizons} must rise")
        if self.branch_point(self.horizons[0]) < self.experiment.optimizer.warmup_steps:
            raise ValueError(
                f"trunk {self.name}: warm-up takes {self.experiment.optimizer.warmup_steps} steps, but the decay to "
                f"the first horizon begins at {self.branch_point(self.horizons[0])}"
            )

    def branch_point(self, steps: int) -> int:
        """The step at which the decay to a horizon begins."""
        return steps - decay_steps(steps, self.experiment.optimizer.decay_fraction)

    @property
    def row_tokens(self) -> int:
        """T."""
        return self.experiment.task.row_tokens  # type: ignore[union-attr]

    @property
    def batch_tokens(self) -> int:
        """Tokens of one update."""
        return self.experiment.batch_size * self.row_tokens

    def flops(self, steps: int) -> float:
        """Training FLOPs (exact convention) of the run to a horizon."""
        return flops_per_token(self.experiment.model, self.row_tokens) * steps * self.batch_tokens

    def own_flops(self) -> float:
        """What the trunk and its branches cost together."""
        *shorter, last = self.horizons
        steps = last + sum(horizon - self.branch_point(horizon) for horizon in shorter)
        return self.flops(steps)

    def recipe(self) -> Recipe:
        """Trunk segments and branches as stages: each goes on from the segment before, so all resume by themselves."""
        stages: dict[str, Experiment] = {}
        before: str | None = None
        for steps in self.horizons:
            if steps != self.horizons[-1]:
                flat = dataclasses.replace(self.experiment.optimizer, schedule="constant")
                segment, end = f"trunk_{self.branch_point(steps)}", self.branch_point(steps)
                task = dataclasses.replace(self.experiment.task, examine=False)  # type: ignore[call-arg]
                stages[segment] = self._stage(end, before, optimizer=flat, task=task)
                before = segment
            stages[f"at_{steps}"] = self._stage(steps, before)
        return Recipe(name=self.name, stages=stages)

    def _stage(self, steps: int, branch_from: str | None, **changes: object) -> Experiment:
        return dataclasses.replace(self.experiment, steps=steps, branch_from=branch_from, keep=1, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A grid of trunks, and candidates for the held-out run, of which the one nearest to the prediction is trained.

    name: of the sweep.  trunks: the grid.  held_out: trunks of one horizon, at a budget above the
    grid's (may be empty).
    """

    name: str
    trunks: tuple[Trunk, ...]
    held_out: tuple[Trunk, ...] = ()

    def __post_init__(self) -> None:
        names = [trunk.name for trunk in (*self.trunks, *self.held_out)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sweep {self.name!r}: trunks are called alike: {', '.join(repeated)}")
        if not self.trunks:
            raise ValueError(f"sweep {self.name!r} has no trunks")

    def trunk(self, name: str) -> Trunk:
        """The trunk of that name, candidates included.

        Raises:
            ValueError: there is none.
        """
        for trunk in (*self.trunks, *self.held_out):
            if trunk.name == name:
                return trunk
        raise ValueError(f"sweep {self.name!r} has no trunk {name!r}")


def isoflop(
    models: Mapping[str, ModelConfig],
    budgets: Mapping[float, Sequence[str]],
    template: Template,
    *,
    row_tokens: int,
    batch_tokens: Callable[[float], int],
    seeds: Sequence[int] = (0,),
    suffix: str = "",
) -> tuple[Trunk, ...]:
    """One trunk a size and seed: its horizons spend the budgets that name it.

    Args:
        models: sizes by name.
        budgets: FLOPs (exact convention) -> names of the sizes that are trained with them.
        template: the run of a model at a batch; its warm-up is cut to a tenth of the first horizon.
        row_tokens: T.
        batch_tokens: tokens of a run -> tokens of a batch; asked once for each size, at its middle horizon, because one
            trunk serves them all.
        seeds: of the runs.
        suffix: of the trunks' names.
    """
    trunks = []
    for name, model in models.items():
        mine = tuple(sorted(budget for budget, names in budgets.items() if name in names))
        if not mine:
            continue
        per_token = flops_per_token(model, row_tokens)
        middle = math.exp(sum(map(math.log, mine)) / len(mine)) / per_token
        batch = batch_tokens(middle)
        horizons = tuple(round(budget / per_token / batch) for budget in mine)
        run = template(model, batch)
        optimizer = dataclasses.replace(
            run.optimizer, warmup_steps=min(run.optimizer.warmup_steps, horizons[0] // 10)
        )  # fmt: skip
        for seed in seeds:
            experiment = dataclasses.replace(run, optimizer=optimizer, seed=seed, steps=horizons[-1])
            label = f"{name}{suffix}" + (f"_seed{seed}" if seed != seeds[0] else "")
            trunks.append(Trunk(name=label, experiment=experiment, horizons=horizons, budgets=mine))
    return tuple(trunks)


def rate_by_batch(
    models: Mapping[str, ModelConfig],
    rates: Sequence[float],
    batches: Sequence[int],
    template: Template,
    *,
    tokens: int,
    row_tokens: int,
) -> tuple[Trunk, ...]:
    """Every peak learning rate with every batch (tokens), for each model, at one number of tokens."""
    trunks = []
    for name, model in models.items():
        for batch in batches:
            steps = round(tokens / batch)
            run = template(model, batch)
            budget = flops_per_token(model, row_tokens) * steps * batch
            for rate in rates:
                optimizer = dataclasses.replace(run.optimizer, peak_lr=rate)
                experiment = dataclasses.replace(run, optimizer=optimizer, steps=steps)
                label = f"{name}_batch{batch}_lr{rate:.3g}"
                trunks.append(Trunk(name=label, experiment=experiment, horizons=(steps,), budgets=(budget,)))
    return tuple(trunks)
