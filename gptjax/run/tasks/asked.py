"""The prompts that a policy learns on, and those that it is examined on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from gptjax.data.conversations import Message
from gptjax.data.prompts import read_prompts
from gptjax.data.python_questions import Question, questions, unanswered_questions

Asked: TypeAlias = list[tuple[Sequence[Message], Question | None]]


def asked_prompts(path: Path | None) -> tuple[Asked, Asked]:
    """(training, held-out) prompts, each with its question if it is one about this Python's library.

    Args:
        path: JSON lines of {"messages": [...]}, of which the last tenth is held out; None: questions about this
            Python's library.

    Raises:
        ValueError: the file holds too few prompts, or a bad line.
    """
    if path is None:
        train, heldout = [*questions("train"), *unanswered_questions()], questions("heldout")
        return [(question.messages, question) for question in train], [(q.messages, q) for q in heldout]
    everything: Asked = [(messages, None) for messages in read_prompts(path)]
    cut = len(everything) - max(2, len(everything) // 10)
    if cut < 1:
        raise ValueError(f"{path}: {len(everything)} prompts are too few to hold some out; give at least 3")
    return everything[:cut], everything[cut:]
