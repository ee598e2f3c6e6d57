"""GPT-2 in its four sizes on eight v5e chips.

    gptjax plan experiments/gpt2.py --topology v5e:2x4
    gptjax plan experiments/gpt2.py:medium --topology v5e:2x4    # also large, xl
    gptjax run experiments/gpt2.py --task.corpus corpus/ --task.tokenizer tokenizer.model

512 rows of 1,024 tokens, as in the paper: 0.5 million tokens a step, in pieces that fit the chips' memory. The
vocabulary is padded to a multiple of 128. The paper states no learning rate; those here are GPT-3's for its sizes.
Planned, never run: docs/scale.md.
"""

from gptjax.model.presets import preset
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.lm import LmTask


def experiment() -> Experiment:
    """124 million parameters."""
    return _of_size("gpt2", 6e-4)


def medium() -> Experiment:
    """355 million parameters."""
    return _of_size("gpt2-medium", 3e-4)


def large() -> Experiment:
    """774 million parameters."""
    return _of_size("gpt2-large", 2.5e-4)


def xl() -> Experiment:
    """1.56 billion parameters."""
    return _of_size("gpt2-xl", 2e-4)


def _of_size(name: str, peak_lr: float) -> Experiment:
    return Experiment(
        task=LmTask(row_tokens=1024, loss_chunks=8),
        model=preset(name, dtype="bfloat16", remat="full", vocab_size=50_304),
        optimizer=OptimizerConfig(peak_lr=peak_lr, warmup_steps=715, weight_decay=0.1),
        mesh=MeshConfig(data=1, fsdp=8),
        steps=600_000,
        batch_size=512,
        microbatches=4,
        save_every=1000,
    )
