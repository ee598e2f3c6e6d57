"""Ranked responses: weak orders only, padded on the right, end tokens only where the response ended."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered import PROMPT, TOKENIZER, comparison

from gptjax.data.preferences import (
    Response,
    check_ranks,
    dense,
    read_preferences,
    reward_batch,
)


def test_candidates_of_a_prompt_lie_side_by_side():
    batch, report = reward_batch(
        [comparison("20", "21 22", "23", ranks=[2, 1, 2]), comparison("30", "31", ended=False)], TOKENIZER, 9
    )
    prompt = [1, 3, 10, 6, 5]
    assert batch.tokens_BCT.tolist() == [
        [[*prompt, 20, 6, 0, 0], [*prompt, 21, 22, 6, 0], [*prompt, 23, 6, 0, 0]],
        [[*prompt, 30, 0, 0, 0], [*prompt, 31, 0, 0, 0], [0] * 9],
    ]
    assert batch.lengths_BC.tolist() == [[7, 8, 7], [6, 6, 0]]
    assert batch.ranks_BC.tolist() == [[2, 1, 2], [1, 2, 0]]
    assert {x.dtype for x in (batch.tokens_BCT, batch.lengths_BC, batch.ranks_BC)} == {np.dtype(np.int32)}
    assert (report.comparisons, report.dropped, report.kept) == (2, 0, (0, 1))


def test_the_number_of_candidate_columns_can_be_given():
    batch, _ = reward_batch([comparison("20", "21")], TOKENIZER, 8, candidates=4)
    assert batch.lengths_BC.tolist() == [[7, 7, 0, 0]]
    with pytest.raises(ValueError, match="a comparison has 3 responses, more than candidates=2"):
        reward_batch([comparison("20", "21", "22")], TOKENIZER, 8, candidates=2)


def test_too_long_comparisons_are_dropped_and_counted():
    given = [comparison("20", "21 22 23"), comparison("30", "31")]
    batch, report = reward_batch(given, TOKENIZER, 7)
    assert batch.tokens_BCT.shape == (1, 2, 7)
    assert (report.comparisons, report.dropped, report.kept) == (2, 1, (1,))
    with pytest.raises(ValueError, match="none of 2 comparisons fits 6 tokens; the shortest needs 7"):
        reward_batch(given, TOKENIZER, 6)


def test_competition_ranks_become_dense_in_the_batch():
    # so that a gap of ranks means the same in both ways of counting
    assert dense([1, 2, 2, 4]) == [1, 2, 2, 3]
    batch, _ = reward_batch([comparison("20", "21", "22", "23", ranks=[1, 2, 2, 4])], TOKENIZER, 8)
    assert batch.ranks_BC.tolist() == [[1, 2, 2, 3]]


def test_responses_that_were_cut_off_are_counted_and_end_in_their_last_token():
    batch, report = reward_batch([comparison("20", "21", ended=False), comparison("30", "31")], TOKENIZER, 8)
    assert (report.responses, report.unended) == (4, 2)
    last = np.take_along_axis(batch.tokens_BCT, batch.lengths_BC[:, :, None] - 1, axis=2)[:, :, 0]
    assert last.tolist() == [[20, 21], [6, 6]]


def test_margins_belong_to_pairs():
    plain, given = comparison("20", "21"), comparison("30", "31", "32")
    batch, _ = reward_batch([plain, dataclasses.replace(given, margins=[(0, 2, 1.5)])], TOKENIZER, 8)
    assert np.argwhere(batch.margins_BCC).tolist() == [[1, 0, 2]]
    assert batch.margins_BCC[1, 0, 2] == 1.5
    assert reward_batch([plain, given], TOKENIZER, 8)[0].margins_BCC is None


@pytest.mark.parametrize(
    "ranks", [[1, 2], [1, 1], [2, 1, 2], [1, 2, 2, 3], [1, 2, 2, 4], [3, 1, 1], [1, 1, 2], [3, 3, 1, 2]]
)
def test_dense_and_competition_ranks_are_accepted(ranks):
    check_ranks(ranks)


@pytest.mark.parametrize("ranks", [[0, 1], [2, 3], [1, 3], [2, 2], [1, 2, 2, 5], [1, 1, 2, 4], [-1, 1], [1, 1, 4]])
def test_other_ranks_are_refused(ranks):
    with pytest.raises(ValueError, match=r"is no ranking; .* would be"):
        check_ranks(ranks)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=8))
def test_ranks_are_accepted_exactly_if_they_are_dense_or_competition(ranks):
    dense = [1 + len({other for other in ranks if other < rank}) for rank in ranks]
    competition = [1 + sum(other < rank for other in ranks) for rank in ranks]
    if ranks in (dense, competition):
        check_ranks(ranks)
    else:
        with pytest.raises(ValueError, match="no ranking"):
            check_ranks(ranks)


def test_reading_keeps_the_other_fields(tmp_path):
    path = tmp_path / "p.jsonl"
    responses = [{"content": "a", "source": "sft", "gold": 1.5}, {"content": "b", "ended": False}]
    path.write_text(json.dumps({"messages": PROMPT, "responses": responses, "ranks": [1, 1], "labeler": "x"}))
    (read,) = read_preferences(path)
    assert read.messages == PROMPT
    assert read.responses[0] == Response(content="a", extra={"source": "sft", "gold": 1.5})
    assert read.responses[1] == Response(content="b", ended=False)
    assert (read.ranks, read.extra) == ([1, 1], {"labeler": "x"})


TWO = [{"content": "a"}, {"content": "b"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [1, 3]}, r"field 'ranks': \[1, 3\] is no ranking; \[1, 2\] would be"),
        ({"ranks": [1]}, "field 'ranks': 1 ranks for 2 responses"),
        ({"ranks": [1, 2.0]}, r"field 'ranks': expected whole numbers, got 2\.0"),
        ({"ranks": [True, 2]}, "field 'ranks': expected whole numbers, got True"),
        ({"ranks": "12"}, "field 'ranks': expected a list, got str"),
        ({"margins": [[0, 1]]}, r"field 'margins': expected \[better, worse, margin\], got \[0, 1\]"),
        ({"margins": [[1, 0, 1.0]]}, r"field 'margins': \[1, 0, 1\.0\]: response 1 is not ranked above response 0"),
        ({"margins": [[0, 2, 1.0]]}, r"field 'margins': \[0, 2, 1\.0\] names no two of the 2 responses"),
        ({"margins": [[0, 1, -1]]}, r"field 'margins': \[0, 1, -1\]: expected a margin of at least 0, got -1"),
        ({"responses": TWO[:1], "ranks": [1]}, r"field 'responses': expected 2\.\.32 candidates, got 1"),
        ({"responses": TWO * 17, "ranks": [1] * 34}, r"field 'responses': expected 2\.\.32 candidates, got 34"),
        ({"responses": ["a", "b"]}, r"responses\[0\]: expected an object, got str"),
        ({"responses": [TWO[0], {"content": 1}]}, r"responses\[1\]: field 'content': expected a string, got int"),
        ({"responses": [TWO[0], {"text": "b"}]}, r"responses\[1\]: no field 'content'; the object has 'text'"),
        (
            {"responses": [TWO[0], {"content": "", "ended": False}]},
            r"responses\[1\]: the response is empty and did not",
        ),
        (
            {"responses": [TWO[0], {"content": "b", "ended": 1}]},
            r"responses\[1\]: field 'ended': expected true or false",
        ),
        ({"messages": [*PROMPT, {"role": "assistant", "content": "a"}]}, "a prompt must end with a user message"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, message):
    path = tmp_path / "bad.jsonl"
    good = {"messages": PROMPT, "responses": TWO, "ranks": [1, 2]}
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl:2: {message}"):
        list(read_preferences(path))


def test_a_missing_field_is_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"messages": PROMPT, "responses": TWO}))
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: no field 'ranks'; the object has 'messages', 'responses'"):
        list(read_preferences(path))
