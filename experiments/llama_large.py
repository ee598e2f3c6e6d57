"""The larger Llamas: Llama 2 13B and 70B, Llama 3 70B.

    gptjax plan experiments/llama_large.py:llama2_13b --topology v5e:16x16
    gptjax plan experiments/llama_large.py:llama2_70b --topology v5p:4x8x8
    gptjax plan experiments/llama_large.py:llama3_70b --topology v5p:8x8x8
    gptjax run experiments/llama_large.py:llama2_13b --task.corpus corpus/ --task.tokenizer tokenizer.model

4 million tokens a step, as published. Planned, never run: docs/scale.md.
"""

from gptjax.model.presets import preset
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.lm import LmTask


def llama2_13b() -> Experiment:
    """On 256 v5e chips."""
    return _experiment("llama2-13b", rows=1024, row_tokens=4096, peak_lr=3e-4, fsdp=256, loss_chunks=4)


def llama2_70b() -> Experiment:
    """On 256 v5p chips, heads and hidden units over 4 of them."""
    return _experiment("llama2-70b", rows=1024, row_tokens=4096, peak_lr=1.5e-4, fsdp=64, tensor=4)


def llama3_70b() -> Experiment:
    """On 512 v5p chips, heads and hidden units over 4 of them."""
    return _experiment("llama3-70b", rows=512, row_tokens=8192, peak_lr=1.5e-4, fsdp=128, tensor=4, loss_chunks=8)


def _experiment(
    name: str,
    *,
    rows: int,
    row_tokens: int,
    peak_lr: float,
    fsdp: int,
    tensor: int = 1,
    loss_chunks: int = 1,
) -> Experiment:
    return Experiment(
        task=LmTask(row_tokens=row_tokens, loss_chunks=loss_chunks),
        model=preset(name, dtype="bfloat16", remat="full", spread_norms=tensor > 1),
        optimizer=OptimizerConfig(peak_lr=peak_lr, warmup_steps=2000, weight_decay=0.1),
        mesh=MeshConfig(data=1, fsdp=fsdp, tensor=tensor),
        steps=500_000,
        batch_size=rows,
        save_every=1000,
    )
