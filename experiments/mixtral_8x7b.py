"""Mixtral 8x7B on 64 v5p chips: parameters over 16 of them, its 8 experts over 4.

    gptjax plan experiments/mixtral_8x7b.py --topology v5p:4x4x4
    gptjax run experiments/mixtral_8x7b.py --task.corpus corpus/ --task.tokenizer tokenizer.model

256 rows of 4,096 tokens: 1.0 million tokens a step; no token is dropped. Planned, never run: docs/scale.md.
"""

from gptjax.model.presets import preset
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.lm import LmTask


def experiment() -> Experiment:
    return Experiment(
        task=LmTask(row_tokens=4096, loss_chunks=8),
        model=preset("mixtral-8x7b", dtype="bfloat16", remat="full"),
        optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=2000, weight_decay=0.1),
        mesh=MeshConfig(data=1, fsdp=16, expert=4),
        steps=500_000,
        batch_size=256,
        save_every=1000,
    )
