"""Packing: every document comes back, no target crosses from one document to the next."""

import time

import numpy as np
import pytest
from golden_cases import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.packing import pack, weighted_by_segment
from gptjax.types import LmBatch

DOCUMENTS = st.lists(st.lists(st.integers(0, 50), max_size=25), min_size=1, max_size=30)


def unpack(batch: LmBatch) -> list[list[int]]:
    """The packed pieces, row by row."""
    pieces = []
    for tokens_T, segments_T in zip(batch.tokens_BT, batch.segments_BT, strict=True):
        for segment in range(1, segments_T.max() + 1):
            pieces.append(tokens_T[segments_T == segment].tolist())
    return pieces


def test_golden_packing_row():
    case = GOLDEN["LM2_packing"]
    batch, report = pack(case["inputs"]["docs"], case["inputs"]["row_len"], pad_id=case["inputs"]["pad_id"])
    expected = case["expected"]
    assert batch.tokens_BT.tolist() == [expected["tokens"]]
    assert batch.segments_BT.tolist() == [expected["segment_ids"]]
    assert batch.positions_BT.tolist() == [expected["positions"]]
    assert batch.weights_BT.tolist() == [[*expected["target_weights"], 0]]
    assert (report.rows, report.fill) == (1, 6 / 8)
    segments_T = batch.segments_BT[0]
    attend = (segments_T[:, None] == segments_T) & (segments_T != 0) & np.tri(8, dtype=bool)
    assert attend.astype(int).tolist() == expected["attend"]


def test_targets_are_the_next_tokens_of_the_same_document():
    # longest first: [3 4 5] and [1 2] fill five of six places
    batch, _ = pack([[1, 2], [3, 4, 5]], 6, pad_id=9)
    assert batch.tokens_BT.tolist() == [[3, 4, 5, 1, 2, 9]]
    assert batch.targets_BT.tolist() == [[4, 5, 9, 2, 9, 9]]
    assert batch.weights_BT.tolist() == [[1, 1, 0, 1, 0, 0]]
    assert [x.dtype for x in (batch.tokens_BT, batch.targets_BT, batch.weights_BT)] == [np.int32, np.int32, np.float32]


def test_the_loss_mask_of_a_token_weighs_the_place_before_it():
    batch, _ = pack([[1, 2, 3, 4]], 5, loss_masks=[[1, 0, 1, 1]])
    assert batch.weights_BT.tolist() == [[0, 1, 1, 0, 0]]


def test_a_document_goes_to_the_fullest_row_with_room():
    # rows of 10: 7 opens row 0, 6 opens row 1; 3 fits both and goes to row 0, which it fills
    documents = [[1] * 3, [2] * 6, [3] * 7]
    batch, report = pack(documents, 10)
    assert batch.tokens_BT.tolist() == [[3] * 7 + [1] * 3, [2] * 6 + [0] * 4]
    assert report.fill == 16 / 20


def test_a_split_document_keeps_every_target():
    # 5 tokens in rows of 2: [1 2] [3 4] [5]; 2's target is 3, 4's is 5, and 5 has none
    batch, report = pack([[1, 2, 3, 4, 5]], 2, long="split")
    assert batch.tokens_BT.tolist() == [[1, 2], [3, 4], [5, 0]]
    assert batch.targets_BT.tolist() == [[2, 3], [4, 5], [0, 0]]
    assert batch.weights_BT.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert batch.positions_BT.tolist() == [[0, 1], [0, 1], [0, 0]]
    assert (report.documents, report.dropped_tokens) == (1, 0)


def test_truncating_and_dropping_are_counted():
    documents = [[1, 2, 3, 4, 5], [6, 7], []]
    batch, report = pack(documents, 3, long="truncate")
    assert batch.tokens_BT.tolist() == [[1, 2, 3], [6, 7, 0]]
    assert batch.weights_BT.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert (report.documents, report.dropped_tokens, report.fill) == (3, 2, 5 / 6)
    batch, report = pack(documents, 3, long="drop")
    assert batch.tokens_BT.tolist() == [[6, 7, 0]]
    assert (report.documents, report.dropped_tokens, report.fill) == (3, 5, 2 / 3)


@settings(deadline=None)
@given(documents=DOCUMENTS, row_tokens=st.integers(2, 30))
def test_every_document_comes_back_exactly(documents, row_tokens):
    pieces = [d[i : i + row_tokens] for d in documents for i in range(0, len(d), row_tokens)]
    if not pieces:
        return
    batch, report = pack(documents, row_tokens)
    assert sorted(unpack(batch)) == sorted(pieces)
    assert report.dropped_tokens == 0
    assert report.fill * batch.tokens_BT.size == pytest.approx(sum(map(len, documents)))
    assert report.rows == len(batch.tokens_BT)


@settings(deadline=None)
@given(documents=DOCUMENTS, row_tokens=st.integers(2, 30), long=st.sampled_from(["split", "truncate", "drop"]))
def test_weights_cover_each_learnt_token_once_and_nothing_else(documents, row_tokens, long):
    masks = [[token % 2 for token in document] for document in documents]
    kept = [d if long == "split" else d[:row_tokens] for d in documents if long != "drop" or len(d) <= row_tokens]
    if not any(kept):
        return
    batch, _ = pack(documents, row_tokens, loss_masks=masks, long=long)
    learnt = sorted(token for document in kept for token in document[1:] if token % 2)
    assert sorted(batch.targets_BT[batch.weights_BT > 0].tolist()) == learnt
    assert (batch.weights_BT[batch.segments_BT == 0] == 0).all()
    first_BT = (batch.positions_BT == 0) & (batch.segments_BT > 0)
    assert (batch.weights_BT[:, :-1][(first_BT | (batch.segments_BT == 0))[:, 1:]] == 0).all()


@settings(deadline=None)
@given(documents=DOCUMENTS)
def test_positions_count_up_within_each_segment_and_segments_within_each_row(documents):
    if not any(documents):
        return
    batch, _ = pack(documents, 16)
    for segments_T, positions_T in zip(batch.segments_BT, batch.positions_BT, strict=True):
        present = segments_T[segments_T > 0]
        assert (np.diff(present) >= 0).all()
        assert set(present) == set(range(1, present.max() + 1))
        assert (segments_T[: len(present)] > 0).all()
        for segment in set(present.tolist()):
            assert positions_T[segments_T == segment].tolist() == list(range((segments_T == segment).sum()))


@settings(deadline=None)
@given(documents=DOCUMENTS)
def test_each_document_with_a_target_weighs_one_if_asked(documents):
    masks = [[token % 2 for token in document] for document in documents]
    if not any(documents):
        return
    rows, _ = pack(documents, 30, loss_masks=masks)
    found = weighted_by_segment(rows)
    np.testing.assert_array_equal(found.weights_BT > 0, rows.weights_BT > 0)
    for weights_T, segments_T, before_T in zip(found.weights_BT, rows.segments_BT, rows.weights_BT, strict=True):
        for segment in set(segments_T.tolist()):
            inside = segments_T == segment
            assert weights_T[inside].sum() == pytest.approx(float(before_T[inside].any()), abs=1e-6)
            assert len(set(weights_T[inside][before_T[inside] > 0].tolist())) <= 1


def test_packing_twice_gives_the_same_rows():
    rng = np.random.default_rng(0)
    documents = [rng.integers(7, 99, size).tolist() for size in rng.integers(1, 80, 300)]
    first, second = (pack(documents, 64)[0] for _ in range(2))
    assert first.tokens_BT.tobytes() == second.tokens_BT.tobytes()


def test_four_million_tokens_pack_in_seconds_and_waste_under_two_percent():
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.lognormal(4.0, 1.2, 36_000).astype(int) + 2, 5_000)
    documents = [np.arange(size) for size in sizes]
    assert sizes.sum() > 4_000_000 * 0.9
    start = time.process_time()
    _, report = pack(documents, 256)
    assert time.process_time() - start < 5
    assert report.fill > 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": [[1]], "row_tokens": 1}, "row_tokens 1 is too small"),
        ({"documents": [[1]], "row_tokens": 4, "long": "wrap"}, "long='wrap': choose split, truncate or drop"),
        ({"documents": [[1]], "row_tokens": 4, "loss_masks": []}, "1 documents but 0 loss masks"),
        (
            {"documents": [[1, 2]], "row_tokens": 4, "loss_masks": [[1]]},
            "document 0 has 2 tokens .* mask has 1",
        ),
        ({"documents": [], "row_tokens": 4}, "no document is left of 0"),
        (
            {"documents": [[1] * 9, []], "row_tokens": 4, "long": "drop"},
            "no document is left of 2: .* 4 tokens",
        ),
        ({"documents": [[1, -1]], "row_tokens": 4}, r"token ids must lie in 0\.\.2147483647, got -1\.\.1"),
    ],
)
def test_errors_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        pack(**arguments)
