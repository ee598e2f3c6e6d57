"""Pairs for direct preference optimisation: which there are, how they are laid out, and whose numbers they carry."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered import TOKENIZER, comparison

from gptjax.data.loader import batch_at
from gptjax.data.pairs import pair_ids, preference_batch, ranked_pairs, with_reference


@pytest.mark.parametrize(
    ("ranks", "every", "extremes"),
    [
        ([1, 2], [(0, 1)], [(0, 1)]),
        ([2, 1, 2], [(1, 0), (1, 2)], [(1, 0)]),
        ([3, 1, 2], [(1, 0), (1, 2), (2, 0)], [(1, 0)]),
        ([1, 1, 1], [], []),
    ],
)
def test_ties_are_no_pairs(ranks, every, extremes):
    assert ranked_pairs(ranks, "all") == every
    assert ranked_pairs(ranks, "best_worst") == extremes
    with pytest.raises(ValueError, match="pairs='best': choose all or best_worst"):
        ranked_pairs(ranks, "best")  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 4), min_size=2, max_size=7))
def test_every_pair_prefers_the_better_rank(ranks):
    pairs = ranked_pairs(ranks, "all")
    assert all(ranks[chosen] < ranks[rejected] for chosen, rejected in pairs)
    n = len(ranks)
    assert len(pairs) == n * (n - 1) // 2 - sum(ranks[i] == ranks[j] for i in range(n) for j in range(i))
    assert set(ranked_pairs(ranks, "best_worst")) <= set(pairs)


def test_a_pair_lies_side_by_side_with_targets_one_ahead():
    batch, report = preference_batch([comparison("20", "21 22", ranks=[2, 1])], TOKENIZER, 9, pairs="all")
    prompt = [1, 3, 10, 6, 5]
    assert batch.tokens_BCT.tolist() == [[[*prompt, 21, 22, 6, 0], [*prompt, 20, 6, 0, 0]]]
    assert batch.targets_BCT.tolist() == [[[*prompt[1:], 21, 22, 6, 0, 0], [*prompt[1:], 20, 6, 0, 0, 0]]]
    assert (batch.lengths_BC.tolist(), batch.prompt_lengths_B.tolist()) == ([[8, 7]], [5])
    assert np.isnan(batch.logp_ref_BC).all()
    assert report.kept == ((0, 1, 0),)


def test_a_response_that_fills_the_row_keeps_its_last_target():
    batch, _ = preference_batch([comparison("20", "21")], TOKENIZER, 7, pairs="all")
    assert batch.tokens_BCT.shape == (1, 2, 7)
    assert batch.targets_BCT[0, 0, 5] == TOKENIZER.end_id  # of the last counted position, length - 2


def test_what_gives_no_pair_is_counted():
    given_ = [comparison("20", "21", ranks=[1, 1]), comparison("20", "21 22 23", "24"), comparison("20", "21")]
    batch, report = preference_batch(given_, TOKENIZER, 7, pairs="all")
    # of 0 < 1 < 2 in the second only (0, 2) fits
    assert report.kept == ((1, 0, 2), (2, 0, 1))
    assert (report.tied, report.dropped, len(batch.lengths_BC)) == (1, 2, 2)
    with pytest.raises(ValueError, match="none of 3 comparisons gives a pair: 1 are all ties, and 4 pairs are longer"):
        preference_batch(given_, TOKENIZER, 6, pairs="all")


def many():
    given_ = [comparison(str(20 + n), f"{30 + n} 7") for n in range(6)]
    return preference_batch(given_, TOKENIZER, 9, pairs="all")[0]


def test_reference_numbers_follow_their_pair_through_any_shuffle():
    rows = many()
    logps = {name: np.array([n + 0.25, -n], np.float32) for n, name in enumerate(pair_ids(rows))}
    turned = dataclasses.replace(rows, **{name: values[::-1] for name, values in vars(rows).items()})
    by_id = dict(reversed(logps.items()))
    for filled in (with_reference(rows, by_id), with_reference(turned, by_id)):
        for position in range(3):
            batch = batch_at(filled, position, 4, seed=5)
            wanted = np.stack([logps[name] for name in pair_ids(batch)])
            np.testing.assert_array_equal(batch.logp_ref_BC, wanted)


def test_an_id_depends_on_the_pair_alone():
    rows = many()
    wider = preference_batch([comparison("22", "32 7")], TOKENIZER, 20, pairs="all")[0]
    assert pair_ids(wider) == pair_ids(rows)[2:3]
    assert len(set(pair_ids(rows))) == 6
    other_prompt_length = dataclasses.replace(rows, prompt_lengths_B=rows.prompt_lengths_B - 1)
    assert not set(pair_ids(other_prompt_length)) & set(pair_ids(rows))


def test_a_missing_or_broken_reference_number_is_refused():
    rows = many()
    logps = dict.fromkeys(pair_ids(rows), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="1 of 6 pairs have no reference log-probabilities, pair 3 first"):
        with_reference(rows, {name: x for name, x in logps.items() if name != pair_ids(rows)[3]})
    logps[pair_ids(rows)[4]] = np.array([np.nan, 0.0], np.float32)
    with pytest.raises(ValueError, match="of 1 of 6 pairs are not finite, those of pair 4 first"):
        with_reference(rows, logps)
