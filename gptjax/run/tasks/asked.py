"""The prompts that a policy learns on, and those that it is examined on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.choices import check_numbers
from gptjax.data.conversations import Message
from gptjax.data.labeler import SimulatedLabeler
from gptjax.data.loader import fingerprint
from gptjax.data.prompts import prompt_batch, read_prompts
from gptjax.data.python_questions import Question, questions, unanswered_questions
from gptjax.data.tokenizer import Tokenizer
from gptjax.types import PromptBatch


class Asked(NamedTuple):
    """A prompt, its question if it is one about this Python's library, and everything that its line says."""

    messages: Sequence[Message]
    question: Question | None
    record: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PolicyTask:
    """A policy that starts from a stage before it and is examined on prompts that it never learnt from.

    policy_from: stage or folder whose weights policy and reference start with.
    reward_from: stage or folder of a reward model, whose scores are reported (None: there is none).
    prompt_tokens: P, longer prompts are left out.
    heldout_prompts, heldout_samples: prompts never trained on, and answers to each, when the policy is examined.
    best_of: samples per prompt of the best-of-n comparison.
    labeler: the simulated labeler whose noise-free score is reported as gold, with the default questions.
    """

    policy_from: str = "sft"
    reward_from: str | None = "reward"
    prompt_tokens: int = 64
    heldout_prompts: int = 128
    heldout_samples: int = 4
    best_of: int = 16
    labeler: SimulatedLabeler = SimulatedLabeler()

    def __post_init__(self) -> None:
        check_numbers(self, "task", at_least_1=("prompt_tokens", "heldout_prompts", "heldout_samples", "best_of"))


@dataclass(frozen=True, kw_only=True)
class PromptedTask(PolicyTask):
    """What PPO, GRPO and RLOO need around them.

    reward_from: stage or folder of the reward model (None: the program is the reward).
    program: a function that judges answers, FILE.py:NAME or MODULE:NAME, see gptjax.run.tasks.program; beside a reward
    model it is only reported, as gold.
    prompts: JSON lines of {"messages": [...]}, of which the last tenth is never trained on; None: questions about this
    Python's library.
    """

    program: str | None = None
    prompts: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.program is None and self.reward_from is None:
            raise ValueError("give task.reward_from or task.program: there is nothing to learn from")

    @property
    def reward_program(self) -> str | None:
        """The program if it is the reward."""
        return self.program if self.reward_from is None else None


def asked_prompts(path: Path | None) -> tuple[list[Asked], list[Asked]]:
    """(training, held-out) prompts.

    Args:
        path: JSON lines of {"messages": [...]}, of which the last tenth is held out; None: questions about this
            Python's library.

    Raises:
        ValueError: the file holds too few prompts, or a bad line.
    """
    if path is None:
        train, heldout = [*questions("train"), *unanswered_questions()], questions("heldout")
        return [_asked(question) for question in train], [_asked(question) for question in heldout]
    everything = [Asked(messages, None, record) for messages, record in read_prompts(path)]
    cut = len(everything) - max(2, len(everything) // 10)
    if cut < 1:
        raise ValueError(f"{path}: {len(everything)} prompts are too few to hold some out; give at least 3")
    return everything[:cut], everything[cut:]


class Prompted(NamedTuple):
    """What a policy is asked.

    prompts: of training, rendered.  records: what the line of each says.  heldout: never trained on.
    fingerprint: of prompts, records and tokenizer.
    """

    prompts: PromptBatch
    records: list[Mapping[str, Any]]
    heldout: list[Asked]
    fingerprint: str


def prompted(config: PromptedTask, tokenizer: Tokenizer) -> Prompted:
    """The prompts that a task's settings name, but for those that are too long."""
    train, heldout = asked_prompts(config.prompts)
    prompts, kept = prompt_batch([asked.messages for asked in train], tokenizer, config.prompt_tokens)
    records = [train[i].record for i in kept]
    said = hashlib.sha256(repr(records).encode()).hexdigest()
    return Prompted(prompts, records, heldout, f"{fingerprint(prompts)}-{said[:16]}-{tokenizer.fingerprint[:16]}")


def _asked(question: Question) -> Asked:
    record = {"messages": list(question.messages), "name": question.name, "answer": question.answer}
    return Asked(question.messages, question, record)
