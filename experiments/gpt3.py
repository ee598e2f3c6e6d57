"""The seven smaller sizes of GPT-3 on v5e chips; the largest is in gpt3_175b.py.

    gptjax plan experiments/gpt3.py:small --topology v5e:4x4     # also medium, large, xl
    gptjax plan experiments/gpt3.py:b2_7 --topology v5e:8x8
    gptjax plan experiments/gpt3.py:b6_7 --topology v5e:16x16    # also b13
    gptjax run experiments/gpt3.py:small --task.corpus corpus/ --task.tokenizer tokenizer.model

Batches, learning rates, warm-up and 300 billion tokens as in the paper's table 2.1 and appendix B, without its ramp of
the batch; its sizes are rounded to powers of two. The vocabulary is padded to a multiple of 128. Planned, never run:
docs/scale.md.
"""

from gptjax.model.presets import preset
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.lm import LmTask

ROW_TOKENS = 2048
TOKENS = 300e9
WARMUP_TOKENS = 375e6


def small() -> Experiment:
    """125 million parameters, 0.5 million tokens a step, on 16 chips."""
    return _of_size("gpt3-small", rows=256, peak_lr=6e-4, chips=16, microbatches=4)


def medium() -> Experiment:
    """350 million parameters, 0.5 million tokens a step, on 16 chips."""
    return _of_size("gpt3-medium", rows=256, peak_lr=3e-4, chips=16, microbatches=4)


def large() -> Experiment:
    """760 million parameters, 0.5 million tokens a step, on 16 chips."""
    return _of_size("gpt3-large", rows=256, peak_lr=2.5e-4, chips=16, microbatches=4)


def xl() -> Experiment:
    """1.3 billion parameters, a million tokens a step, on 16 chips."""
    return _of_size("gpt3-xl", rows=512, peak_lr=2e-4, chips=16, microbatches=8)


def b2_7() -> Experiment:
    """2.7 billion parameters, a million tokens a step, on 64 chips."""
    return _of_size("gpt3-2.7b", rows=512, peak_lr=1.6e-4, chips=64, microbatches=2)


def b6_7() -> Experiment:
    """6.7 billion parameters, 2 million tokens a step, on 256 chips."""
    return _of_size("gpt3-6.7b", rows=1024, peak_lr=1.2e-4, chips=256)


def b13() -> Experiment:
    """13 billion parameters, 2 million tokens a step, on 256 chips."""
    return _of_size("gpt3-13b", rows=1024, peak_lr=1e-4, chips=256)


def _of_size(name: str, *, rows: int, peak_lr: float, chips: int, microbatches: int = 1) -> Experiment:
    batch_tokens = rows * ROW_TOKENS
    return Experiment(
        task=LmTask(row_tokens=ROW_TOKENS),
        model=preset(name, dtype="bfloat16", remat="full", vocab_size=50_304),
        optimizer=OptimizerConfig(
            peak_lr=peak_lr, warmup_steps=round(WARMUP_TOKENS / batch_tokens), b2=0.95, weight_decay=0.1
        ),
        mesh=MeshConfig(data=1, fsdp=chips),
        steps=round(TOKENS / batch_tokens),
        batch_size=rows,
        microbatches=microbatches,
        save_every=1000,
    )
