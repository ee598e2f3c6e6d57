"""The prompts of a policy: what changes their fingerprint, by which a resume knows its data."""

import json

import pytest

from gptjax.data.byte_tokenizer import ByteTokenizer
from gptjax.run.tasks.asked import PromptedTask, prompted

LINES = [{"messages": [{"role": "user", "content": f"What is {n} and {n}?"}], "sum": 2 * n} for n in range(20)]


def fingerprint(folder, lines, **settings):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = PromptedTask(prompts=path, reward_from=None, program="any", **settings)
    return prompted(config, ByteTokenizer()).fingerprint


def test_the_same_prompts_have_the_same_fingerprint(tmp_path):
    assert fingerprint(tmp_path, LINES) == fingerprint(tmp_path, LINES)


@pytest.mark.parametrize(
    "change",
    [{"messages": [{"role": "user", "content": "What is 1 and 2?"}]}, {"sum": 3}],
    ids=["another prompt", "another record, which a program reads"],
)
def test_one_changed_line_changes_the_fingerprint_though_as_many_are_left(change, tmp_path):
    assert fingerprint(tmp_path, [LINES[0], LINES[1] | change, *LINES[2:]]) != fingerprint(tmp_path, LINES)


def test_a_prompt_that_is_held_out_does_not_count(tmp_path):
    assert fingerprint(tmp_path, [*LINES[:-1], LINES[0]]) == fingerprint(tmp_path, LINES)


@pytest.mark.parametrize("setting", ["prompt_tokens", "heldout_prompts", "heldout_samples", "best_of"])
def test_an_examination_of_nothing_is_refused_before_the_training(setting):
    with pytest.raises(ValueError, match=f"task.{setting} must be at least 1, got 0"):
        PromptedTask(**{setting: 0})
