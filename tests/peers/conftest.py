"""torch and TRL are imported here once, apart from the suite's rule that a warning is an error: theirs are not ours.

Without the extra `peers` every test of this folder is skipped.
"""

import contextlib
import warnings

import pytest

with warnings.catch_warnings(), contextlib.suppress(ModuleNotFoundError):
    warnings.simplefilter("ignore")
    import trl.experimental.ppo.ppo_trainer
    import trl.trainer.dpo_trainer
    import trl.trainer.grpo_trainer
    import trl.trainer.reward_trainer
    import trl.trainer.rloo_trainer  # noqa: F401


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(__file__.removesuffix("/conftest.py")):
            for module in ("torch", "transformers", "trl", "accelerate"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:::{module}"))
