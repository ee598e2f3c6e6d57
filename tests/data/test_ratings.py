"""Rated responses: 1 to 7 or not rated, weights, the order that they give, bad lines by file and line."""

import json

import numpy as np
import pytest
from numbered import PROMPT, TOKENIZER

from gptjax.data.preferences import Response
from gptjax.data.ratings import RatedResponses, rating_batch, read_ratings


def rated(contents, ratings, weights=None):
    responses = [Response(content=content) for content in contents]
    return RatedResponses(
        messages=PROMPT, responses=responses, ratings=ratings, weights=weights or [1.0] * len(ratings)
    )


def test_ratings_stand_beside_their_rows_and_missing_ones_weigh_nothing():
    given = [rated(["20", "21 22", "23"], [7, None, 2.5], [1, 1, 3]), rated(["9 9 9 9"], [1]), rated(["30"], [4])]
    batch, report = rating_batch(given, TOKENIZER, 8)
    assert batch.tokens_BCT.shape == (2, 3, 8)
    assert batch.lengths_BC.tolist() == [[7, 8, 7], [7, 0, 0]]
    assert batch.ratings_BC.tolist() == [[7, 0, 2.5], [4, 0, 0]]
    assert batch.weights_BC.tolist() == [[1, 0, 3], [1, 0, 0]]
    assert (report.dropped, report.kept, report.responses) == (1, (0, 2), 4)
    assert {x.dtype for x in (batch.ratings_BC, batch.weights_BC)} == {np.dtype(np.float32)}


def test_ratings_order_the_responses():
    # 7 is best, two sixes tie, what is not rated has no rank
    assert rated("abcd", [6, None, 7, 6]).ranks == [2, 0, 1, 2]


def test_a_file_of_ratings_is_read(tmp_path):
    path = tmp_path / "r.jsonl"
    responses = [
        {"content": "a", "rating": 5, "weight": 2},
        {"content": "b", "ended": False},
        {"content": "c", "rating": None},
    ]
    path.write_text(json.dumps({"messages": PROMPT, "responses": responses, "labeler": "x"}))
    (read,) = read_ratings(path)
    assert (read.ratings, read.weights, read.extra) == ([5, None, None], [2, 1.0, 1.0], {"labeler": "x"})
    assert read.responses[1].ended is False


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([], r"field 'responses': expected 1\.\.32 of them, got 0"),
        ([{"content": "a", "rating": 3}] * 33, r"field 'responses': expected 1\.\.32 of them, got 33"),
        ([{"content": "a", "rating": 0}], r"responses\[0\]: field 'rating': expected 1 to 7 or null, got 0"),
        ([{"content": "a", "rating": 7.5}], r"responses\[0\]: field 'rating': expected 1 to 7 or null, got 7\.5"),
        ([{"content": "a", "rating": True}], r"responses\[0\]: field 'rating': expected 1 to 7 or null, got True"),
        ([{"content": "a", "rating": "5"}], r"responses\[0\]: field 'rating': expected 1 to 7 or null, got '5'"),
        (
            [{"content": "a", "rating": 5, "weight": 0}],
            r"responses\[0\]: field 'weight': expected a number above 0, got 0",
        ),
        (
            [{"content": "a", "rating": 5, "weight": None}],
            r"responses\[0\]: field 'weight': expected a number above 0, got None",
        ),
        ([{"content": "a"}, {"content": "b"}], "none of the responses is rated"),
        ([{"content": "", "ended": False, "rating": 3}], r"responses\[0\]: the response is empty and did not end"),
    ],
)
def test_a_bad_line_is_named(tmp_path, responses, message):
    path = tmp_path / "bad.jsonl"
    good = {"messages": PROMPT, "responses": [{"content": "a", "rating": 3}]}
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"responses": responses}) + "\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl:2: {message}"):
        list(read_ratings(path))
