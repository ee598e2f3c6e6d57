"""The experiments for pods: layouts go with the chips that their files name. Their memory is planned: docs/scale.md."""

import math
import re
from pathlib import Path

import jax
import pytest

from gptjax.model.presets import PRESETS
from gptjax.run.experiment import check_layout
from gptjax.run.load import load_recipe

FOLDER = Path(__file__).parents[2] / "experiments"


def stated():
    """(experiment, chips) for every `gptjax plan` line of the experiments, with what their comments add."""
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        for line in path.read_text().splitlines():
            if plan := re.match(r"    gptjax plan experiments/(\S+) --topology \w+:([\dx]+)(?:\s+# also (.*))?$", line):
                target, shape, others = plan.groups()
                chips = math.prod(map(int, shape.split("x")))
                names = [target] + [f"{path.name}:{name}" for name in (others or "").split(", ") if name]
                found += [(name, chips) for name in names]
    return found


@pytest.mark.parametrize(("target", "chips"), stated())
def test_a_layout_goes_with_the_chips_that_the_file_names(target, chips):
    [experiment] = load_recipe(str(FOLDER / target), []).stages.values()
    sizes = {axis: getattr(experiment.mesh, axis) or 1 for axis in ("data", "fsdp", "expert", "context", "tensor")}
    assert math.prod(sizes.values()) == chips
    check_layout(experiment, jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes)))


def test_every_preset_of_a_published_model_has_an_experiment():
    models = [load_recipe(str(FOLDER / target), []).stages["run"].model for target, _ in stated()]
    planned = {(m.layers, m.width, m.max_length, m.hidden, m.experts, m.rope_theta) for m in models}
    for name, m in PRESETS.items():
        assert (m.layers, m.width, m.max_length, m.hidden, m.experts, m.rope_theta) in planned, name
