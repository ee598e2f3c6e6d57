"""The prompts of a policy: what changes their fingerprint, by which a resume knows its data."""

import json

import pytest

from gptjax.data.byte_tokenizer import ByteTokenizer
from gptjax.run.tasks.asked import PolicyTask, prompted

LINES = [{"messages": [{"role": "user", "content": f"What is {n} and {n}?"}], "sum": 2 * n} for n in range(20)]


def fingerprint(folder, lines, **settings):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return prompted(PolicyTask(prompts=path, reward_from=None, program="any", **settings), ByteTokenizer()).fingerprint


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
