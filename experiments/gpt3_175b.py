"""GPT-3 175B on 512 v5p chips: parameters over 128 of them, heads and hidden units over 4.

    gptjax plan experiments/gpt3_175b.py --topology v5p:8x8x8
    gptjax run experiments/gpt3_175b.py --task.corpus corpus/ --task.tokenizer tokenizer.model

1,024 rows of 2,048 tokens: 2.1 million tokens a step. The vocabulary is padded to a multiple of 128, so that 4 devices
can share it. Planned, never run: docs/scale.md.
"""

from gptjax.model.presets import preset
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.lm import LmTask


def experiment() -> Experiment:
    return Experiment(
        task=LmTask(row_tokens=2048),
        model=preset("gpt3-175b", dtype="bfloat16", remat="full", spread_norms=True, vocab_size=50_304),
        optimizer=OptimizerConfig(peak_lr=6e-5, warmup_steps=180, weight_decay=0.1),
        mesh=MeshConfig(data=1, fsdp=128, tensor=4),
        steps=143_000,
        batch_size=1024,
        save_every=1000,
    )
