"""Llama 2 7B on a v5e pod slice of 256 chips, parameters spread over all of them.

    gptjax plan experiments/llama2_7b.py --topology v5e:16x16
    gptjax run experiments/llama2_7b.py --task.corpus corpus/ --task.tokenizer tokenizer.model

4 rows of 2,048 tokens on each chip: 2.1 million tokens a step. Planned, never run: docs/scale.md.
"""

from gptjax.model.presets import preset
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.lm import LmTask


def experiment() -> Experiment:
    return Experiment(
        task=LmTask(row_tokens=2048),
        model=preset("llama2-7b", dtype="bfloat16", remat="full"),
        optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=2000, weight_decay=0.1),
        mesh=MeshConfig(data=1, fsdp=256),
        steps=500_000,
        batch_size=1024,
        save_every=1000,
    )
