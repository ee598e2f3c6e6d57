"""One Transformer, pre-trained as a language model and as a masked language model, in both orders; two CPU cores.

    gptjax run experiments/lm_then_mlm.py

The stages `lm` and `mlm` start from scratch; `mlm_after_lm` and `lm_after_mlm` go on from the other one's weights, with
the same corpus (the documentation of the Python that runs this) and tokenizer. So each objective can be read off twice
at the same number of its own updates: from random weights, and after the other objective. About 3 minutes in all.
Expected figures: docs/log.md.
"""

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.mlm import MlmTask

MODEL = ModelConfig(vocab_size=2048, layers=3, width=96, heads=3, max_length=128, activation="relu2", unroll=3)


def recipe() -> Recipe:
    return Recipe(
        name="lm_then_mlm",
        stages={
            "lm": lm(),
            "mlm_after_lm": mlm(start_from="lm"),
            "mlm": mlm(),
            "lm_after_mlm": lm(start_from="mlm"),
        },
    )


def lm(start_from: str | None = None) -> Experiment:
    return _experiment(LmTask(include_source=False, row_tokens=128, loss_chunks=4, start_from=start_from))


def mlm(start_from: str | None = None) -> Experiment:
    return _experiment(MlmTask(include_source=False, row_tokens=128, loss_chunks=4, start_from=start_from))


def _experiment(task: LmTask | MlmTask) -> Experiment:
    return Experiment(
        task=task,
        model=MODEL,
        optimizer=OptimizerConfig(name="muon", peak_lr=1e-2, warmup_steps=20, final_fraction=0.05, weight_decay=0.1),
        steps=240,
        batch_size=16,
        evaluate_every=60,
        save_every=120,
    )
