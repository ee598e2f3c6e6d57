"""Candidates packed into rows: nothing is lost, every place is known, shapes stay the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.candidates import epoch_rows, packed, rows_needed
from gptjax.data.loader import batch_at
from gptjax.types import RatingBatch, RewardBatch


def ranked(lengths, seed=0):
    """Random tokens from 1 to 99."""
    lengths_BC = np.array(lengths, np.int32)
    shape = (*lengths_BC.shape, max(1, lengths_BC.max()))
    tokens_BCT = np.random.default_rng(seed).integers(1, 100, shape, np.int32)
    return RewardBatch(tokens_BCT=tokens_BCT, lengths_BC=lengths_BC, ranks_BC=np.minimum(lengths_BC, 1))


def test_packing_by_hand():
    # rows of 8, longest first: [3 3 3 1] and [3 1 2] in row 0, which has room for [3]; [3 2] and [3 3] in row 1
    tokens = np.array([[[3, 1, 2, 0], [3, 0, 0, 0], [3, 2, 0, 0]], [[3, 3, 3, 1], [3, 3, 2, 2], [0, 0, 0, 0]]])
    lengths = np.array([[3, 1, 2], [4, 2, 0]])
    rows = packed(RewardBatch(tokens_BCT=tokens, lengths_BC=lengths, ranks_BC=lengths), 8)
    assert rows.tokens_BT.tolist() == [[3, 3, 3, 1, 3, 1, 2, 3], [3, 2, 3, 3, 0, 0, 0, 0]]
    assert rows.segments_BT.tolist() == [[1, 1, 1, 1, 2, 2, 2, 3], [1, 1, 2, 2, 0, 0, 0, 0]]
    assert rows.positions_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 0, 1, 0, 0, 0, 0]]
    assert rows.last_BC.tolist() == [[6, 7, 9], [3, 11, 0]]
    assert rows.judged.ranks_BC.tolist() == lengths.tolist()
    assert {x.dtype for x in (rows.tokens_BT, rows.segments_BT, rows.positions_BT, rows.last_BC)} == {np.dtype("int32")}


LENGTHS = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 9), min_size=n, max_size=n), min_size=1, max_size=6)
)


@settings(deadline=None)
@given(lengths=LENGTHS, row_tokens=st.integers(9, 30), multiple=st.integers(1, 4))
def test_every_candidate_stands_whole_before_its_last_place(lengths, row_tokens, multiple):
    batch = ranked(lengths)
    rows = packed(batch, row_tokens, multiple=multiple)
    assert len(rows.tokens_BT) % multiple == 0
    assert np.count_nonzero(rows.segments_BT) == batch.lengths_BC.sum()
    tokens, segments, positions = (x.ravel() for x in (rows.tokens_BT, rows.segments_BT, rows.positions_BT))
    names = set()
    for prompt, candidate in np.argwhere(batch.lengths_BC > 0):
        length, last = batch.lengths_BC[prompt, candidate], rows.last_BC[prompt, candidate]
        place = slice(last + 1 - length, last + 1)
        assert tokens[place].tolist() == batch.tokens_BCT[prompt, candidate, :length].tolist()
        assert positions[place].tolist() == list(range(length))
        names.add((last // row_tokens, segments[last]))
        assert (segments[place] == segments[last]).all()
        assert np.count_nonzero(rows.segments_BT[last // row_tokens] == segments[last]) == length
    assert len(names) == np.count_nonzero(batch.lengths_BC)  # no two share a segment


def test_a_batch_has_the_rows_asked_for_and_more_only_if_it_needs_them():
    batch = ranked([[5, 5, 5]])
    assert [len(packed(batch, 8, rows=rows).tokens_BT) for rows in (1, 3, 5)] == [3, 3, 5]
    assert len(packed(batch, 8, rows=3, multiple=4).tokens_BT) == 4
    assert len(packed(ranked([[0, 0]]), 8).tokens_BT) == 1
    with pytest.raises(ValueError, match="row_tokens 4 is too small: a candidate has 5 tokens"):
        packed(batch, 4)


def test_the_rows_of_an_epoch_are_those_of_its_neediest_batch():
    data = ranked(np.random.default_rng(1).integers(0, 10, (12, 4)))
    needed = [rows_needed(batch_at(data, position, 3, 7).lengths_BC, 10) for position in range(4)]
    assert min(needed) < epoch_rows(data, 3, 7, 10) == max(needed)
    assert epoch_rows(data, 3, 7, 10, most_batches=1) == needed[0]


def test_the_shares_of_all_hosts_are_the_batch_of_one():
    ratings = ranked([[3, 4], [1, 9], [2, 2], [5, 0]])
    lengths = ratings.lengths_BC
    batch = RatingBatch(tokens_BCT=ratings.tokens_BCT, lengths_BC=lengths, ratings_BC=lengths, weights_BC=lengths)
    whole = packed(batch, 10, multiple=4)
    shares = [packed(batch, 10, multiple=4, host=host, n_hosts=4) for host in range(4)]
    for name in ("tokens_BT", "segments_BT", "positions_BT", "last_BC"):
        np.testing.assert_array_equal(np.concatenate([getattr(share, name) for share in shares]), getattr(whole, name))
    assert [share.judged.ratings_BC.tolist() for share in shares] == [[row] for row in lengths.tolist()]
