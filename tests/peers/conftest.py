"""torch and TRL are imported here once, apart from the suite's rule that a warning is an error: theirs are not ours.

Without the extra `peers` every test of this folder is skipped; with it, what cannot be imported is an error.
"""

import importlib.util
import warnings
from pathlib import Path

import pytest

if importlib.util.find_spec("torch") and importlib.util.find_spec("trl"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl.experimental.ppo.ppo_trainer
        import trl.trainer.dpo_trainer
        import trl.trainer.grpo_trainer
        import trl.trainer.reward_trainer
        import trl.trainer.rloo_trainer  # noqa: F401


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for module in ("torch", "transformers", "trl", "accelerate"):
                item.add_marker(pytest.mark.filterwarnings(rf"ignore:::{module}(\.|$)"))
