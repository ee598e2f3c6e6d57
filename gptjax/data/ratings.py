"""Rated responses: a number from 1 to 7 for each, as training data for a reward model that predicts it."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptjax.data.conversations import read_messages
from gptjax.data.preferences import MAX_CANDIDATES, Answered, RewardReport, candidate_rows, dense, read_responses
from gptjax.data.prompts import check_prompt
from gptjax.data.tokenizer import Tokenizer
from gptjax.types import RatingBatch

LOWEST, HIGHEST = 1.0, 7.0


@dataclass(frozen=True, kw_only=True)
class RatedResponses(Answered):
    """A prompt and 1 to 32 responses, each with a rating from 1 to 7 (None: not rated) and the rating's weight.

    Raises:
        ValueError: the number of responses, a rating or a weight lies outside its range, or nothing is rated.
    """

    ratings: Sequence[float | None]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if not 1 <= len(self.responses) <= MAX_CANDIDATES:
            raise ValueError(f"field 'responses': expected 1..{MAX_CANDIDATES} of them, got {len(self.responses)}")
        for name, values in (("rating", self.ratings), ("weight", self.weights)):
            if len(values) != len(self.responses):
                raise ValueError(f"{len(values)} {name}s for {len(self.responses)} responses")
        for index, (rating, weight) in enumerate(zip(self.ratings, self.weights, strict=True)):
            if rating is not None and not (_is_number(rating) and LOWEST <= rating <= HIGHEST):
                raise ValueError(f"responses[{index}]: field 'rating': expected 1 to 7 or null, got {rating!r}")
            if not (_is_number(weight) and 0.0 < weight < math.inf):
                raise ValueError(f"responses[{index}]: field 'weight': expected a number above 0, got {weight!r}")
        if all(rating is None for rating in self.ratings):
            raise ValueError("none of the responses is rated")

    @property
    def ranks(self) -> list[int]:
        """The order that the ratings give: 1 = best, equal ratings are ties, 0 = not rated."""
        places = iter(dense([-rating for rating in self.ratings if rating is not None]))
        return [0 if rating is None else next(places) for rating in self.ratings]


def read_ratings(path: str | os.PathLike[str]) -> Iterator[RatedResponses]:
    """Rated responses of a JSON-lines file with `messages` and `responses` on each line.

    Args:
        path: the file; a response is `{"content": text, "rating": 5, "weight": 1, "ended": true, ...}`. A `rating` of
            null, or none at all, means not rated; further keys end up in `extra`.

    Raises:
        ValueError: `path:line: ...` for a bad line.
    """
    for where, messages, record in read_messages(path):
        check_prompt(messages, where)
        responses = read_responses(record, where)
        try:
            yield RatedResponses(
                messages=messages,
                responses=responses,
                ratings=[response.extra.get("rating") for response in responses],
                weights=[response.extra.get("weight", 1.0) for response in responses],
                extra={key: value for key, value in record.items() if key not in ("messages", "responses")},
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def rating_batch(
    rated: Sequence[RatedResponses], tokenizer: Tokenizer, row_tokens: int, *, candidates: int | None = None
) -> tuple[RatingBatch, RewardReport]:
    """Render all responses of all prompts, padded on the right.

    Args:
        rated: what was rated.
        tokenizer: gives the ids.
        row_tokens: columns (T); a prompt with a longer response is dropped whole.
        candidates: responses per prompt in the arrays (C); None takes the most that any prompt has.

    Returns:
        (batch, report); weights_BC is 0 where there is no rating.

    Raises:
        ValueError: no prompt fits, or one has more than `candidates` responses.
    """
    tokens_BCT, lengths_BC, report = candidate_rows(rated, tokenizer, row_tokens, candidates)
    ratings_BC, weights_BC = np.zeros(lengths_BC.shape, np.float32), np.zeros(lengths_BC.shape, np.float32)
    for row, index in enumerate(report.kept):
        pairs = zip(rated[index].ratings, rated[index].weights, strict=True)
        for column, (rating, weight) in enumerate(pairs):
            if rating is not None:
                ratings_BC[row, column], weights_BC[row, column] = rating, weight
    batch = RatingBatch(tokens_BCT=tokens_BCT, lengths_BC=lengths_BC, ratings_BC=ratings_BC, weights_BC=weights_BC)
    return batch, report


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
