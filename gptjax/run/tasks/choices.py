"""Prompts that come with given answers, true and false ones: which of them a model thinks likelier."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptjax.data.conversations import render_prompt
from gptjax.data.loader import evaluation_batches
from gptjax.data.pairs import candidate_batch
from gptjax.data.preferences import Response, render_response
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.multiple_choice import mc1, mc2
from gptjax.run.tasks.asked import Asked
from gptjax.types import PreferenceBatch


class Choices:
    """The given answers of all prompts that have any, `{"choices": {"true": [...], "false": [...]}}` in their line."""

    def __init__(self, asked: Sequence[Asked], tokenizer: Tokenizer, multiple: int = 1):
        """Render the answers of `asked`; rows have a multiple of `multiple` tokens.

        Raises:
            ValueError: a prompt's choices are not both lists of texts with at least one each.
        """
        self._given = [_choices(prompt) for prompt in asked if "choices" in prompt.record]
        prompts = [prompt.messages for prompt in asked if "choices" in prompt.record]
        self.rows = _rows(prompts, [true + false for true, false in self._given], tokenizer, multiple)

    def figures(self, logps: Callable[[PreferenceBatch], Any], batch_size: int) -> dict[str, float]:
        """mc1 and mc2 (0 to 1, means over prompts) from host batch -> log-probability f32[B, C]; {} without choices."""
        if self.rows is None:
            return {}
        pieces = [np.asarray(logps(batch)) for batch in evaluation_batches(self.rows, batch_size)]
        found = zip(np.concatenate(pieces), self._given, strict=False)
        pairs = [(logp_C[: len(t) + len(f)], np.arange(len(t) + len(f)) < len(t)) for logp_C, (t, f) in found]
        return {name: float(np.mean([score(*pair) for pair in pairs])) for name, score in (("mc1", mc1), ("mc2", mc2))}


def _choices(prompt: Asked) -> tuple[list[str], list[str]]:
    given = prompt.record["choices"]
    kinds: list[Any] = [given.get(kind) if isinstance(given, dict) else None for kind in ("true", "false")]
    for answers in kinds:
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(
                f"field 'choices' of the prompt {prompt.messages[-1]['content'][:80]!r}: expected lists of texts under "
                f"'true' and 'false', got {given!r}"
            )
    true, false = kinds
    return true, false


def _rows(
    prompts: Sequence[Any], answers: Sequence[list[str]], tokenizer: Tokenizer, multiple: int
) -> PreferenceBatch | None:
    """One row per prompt, one candidate per answer, padded on the right; None without a prompt."""
    if not prompts:
        return None
    rendered = [
        [render_response(messages, Response(content=answer), tokenizer) for answer in given]
        for messages, given in zip(prompts, answers, strict=True)
    ]
    longest = max(len(ids) for row in rendered for ids in row)
    prompt_lengths = [len(render_prompt(messages, tokenizer)) for messages in prompts]
    return candidate_batch(rendered, prompt_lengths, -(-longest // multiple) * multiple, tokenizer.pad_id)
