"""Memory, collectives and compile time of gptjax's plans beside those of MaxText 0.2.5.

    python experiments/benchmarks/plan_vs_maxtext.py llama2_7b llama3_8b mixtral_8x7b gpt3_175b

One JSON line for each. MaxText's figures were taken with its train_compile at the same model, topology, mesh, batch and
full rematerialisation, float32 parameters and AdamW state, synthetic input, on two cores; results: docs/log.md.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from gptjax.model.pure import language_model
from gptjax.run.load import load_recipe
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.run.plan.compile import plan_experiment, topology_devices
from gptjax.run.start import start_jax

# topology, and of MaxText the bytes of arguments, of temporaries and at XLA's peak, and seconds (compile and start)
MAXTEXT = {
    "llama2_7b": ("v5e:16x16", 316e6, 5797e6, 4435e6, 195),
    "llama3_8b": ("v6e:16x16", 379e6, 19_682e6, 14_473e6, 190),
    "mixtral_8x7b": ("v5p:4x4x4", 8760e6, 33_442e6, 34_275e6, 200),
    "gpt3_175b": ("v5p:8x8x8", 4136e6, 20_220e6, None, 198),  # its peak is not known: it did not compile here
}


def fsdp_closed_form(model: Any, itemsize: int, tensor: int) -> dict[str, float]:
    """Bytes gathered and scattered over `fsdp` on each device if every matrix is gathered twice and scattered once."""
    params = jax.eval_shape(language_model(model).init, jax.eval_shape(lambda: jax.random.key(0)))
    size = itemsize * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) / tensor
    return {"all-gather": 2 * size, "reduce-scatter": size}


def main(names: list[str]) -> None:
    """Plan each experiment and print it beside MaxText's figures."""
    start_jax()
    for name in names or MAXTEXT:
        topology, arguments, temporaries, peak, seconds = MAXTEXT[name]
        path = Path(__file__).parents[1] / f"{name}.py"
        experiment = load_recipe(str(path), []).stages["run"]
        [step] = plan_experiment(experiment, topology_devices(topology))
        memory = step.memory
        ours = memory.parameters + memory.optimizer + memory.other_arguments
        moved: dict[str, float] = {}
        for row in step.traffic:
            key = f"{row.kind} over {row.axes}"
            moved[key] = moved.get(key, 0.0) + row.payload_bytes
        with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
            expected = fsdp_closed_form(experiment.model, 2, experiment.mesh.tensor)
        found = {
            "experiment": name,
            "arguments": ours,
            "temporaries": memory.temporaries,
            "peak": memory.peak,
            "of_maxtext": (ours + memory.temporaries) / (arguments + temporaries),
            "peak_of_maxtext": None if peak is None else memory.peak / peak,
            "payload": moved,
            "closed_form_over_fsdp": expected,
            "compile_seconds": step.compile_seconds,
            "compile_of_maxtext": step.compile_seconds / seconds,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
