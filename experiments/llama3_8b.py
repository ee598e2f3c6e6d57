"""Llama 3 8B on a v6e pod slice of 256 chips: parameters over 64 of them, heads and hidden units over 4.

    gptjax plan experiments/llama3_8b.py --topology v6e:16x16
    gptjax run experiments/llama3_8b.py --task.corpus corpus/ --task.tokenizer tokenizer.model

512 rows of 8,192 tokens: 4.2 million tokens a step. Planned, never run: docs/scale.md.
"""

from gptjax.model.presets import preset
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.lm import LmTask


def experiment() -> Experiment:
    return Experiment(
        task=LmTask(row_tokens=8192, loss_chunks=32),
        model=preset("llama3-8b", dtype="bfloat16", remat="full", spread_norms=True),
        optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=2000, weight_decay=0.1),
        mesh=MeshConfig(data=1, fsdp=64, tensor=4),
        steps=500_000,
        batch_size=512,
        save_every=1000,
    )
