"""Prompts: padded on the left, long ones dropped and counted."""

from types import SimpleNamespace

import numpy as np
import pytest

from gptjax.data.prompts import prompt_batch, read_prompts

TOKENIZER = SimpleNamespace(
    pad_id=0,
    bos_id=1,
    system_id=2,
    user_id=3,
    assistant_id=5,
    end_id=6,
    encode=lambda text: [int(word) for word in text.split()],
)


def user(content):
    return [{"role": "user", "content": content}]


def test_prompts_end_in_the_last_column():
    # bos, user, content, end, assistant: 4 tokens more than the content
    batch, kept = prompt_batch([user("10"), user("11 12"), user("7 8 9")], TOKENIZER, 6)
    assert batch.tokens_BP.tolist() == [[0, 1, 3, 10, 6, 5], [1, 3, 11, 12, 6, 5]]
    assert batch.lengths_B.tolist() == [5, 6]
    assert batch.tokens_BP.dtype == batch.lengths_B.dtype == np.int32
    assert kept == (0, 1)


def test_no_prompt_that_fits_is_an_error():
    with pytest.raises(ValueError, match="none of 2 prompts fits 4 tokens; the shortest has 5"):
        prompt_batch([user("10 11"), user("10")], TOKENIZER, 4)
    with pytest.raises(ValueError, match="none of 0 prompts"):
        prompt_batch([], TOKENIZER, 4)


def test_reading_prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "10"}], "kind": "plain"}\n')
    assert [messages for messages, _ in read_prompts(path)] == [user("10")]


def test_a_prompt_that_ends_with_an_answer_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    good = '{"messages": [{"role": "user", "content": "q"}]}\n'
    path.write_text(good + '{"messages": [{"role": "assistant", "content": "a"}]}\n')
    with pytest.raises(
        ValueError, match=r"p\.jsonl:2: a prompt must end with a user message, .* ends with 'assistant'"
    ):
        list(read_prompts(path))
