"""Which checkpoints stay: against a model of ten lines, over any sequence of saves."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.run.retention import Retention

SCORE = st.one_of(st.none(), st.sampled_from([math.nan, math.inf, -math.inf, 1.0, 2.0]), st.floats(-9, 9))


def expected(history, present, keep):
    """Steps that survive one clean-up, written another way: each step is asked on its own."""
    kept = []
    for step in present:
        newer = [other for other in present if other > step]
        score = history[step]
        usable = score is not None and not math.isnan(score) and abs(score) != math.inf
        better = [
            other
            for other in present
            if usable
            and history[other] is not None
            and math.isfinite(history[other])
            and (history[other] > score or (history[other] == score and other > step))
        ]
        best = usable and len(better) < keep.best
        if len(newer) < keep.newest or best or (keep.every and step % keep.every == 0):
            kept.append(step)
    return kept


@settings(max_examples=200, deadline=None)
@given(
    st.lists(SCORE, min_size=1, max_size=200),
    st.builds(
        Retention, newest=st.integers(1, 4), best=st.integers(0, 3), every=st.one_of(st.none(), st.integers(1, 20))
    ),
)
def test_any_sequence_of_saves_keeps_what_the_model_keeps(scores, keep):
    history, ours, theirs = {}, [], []
    for step, score in enumerate(scores, start=1):
        history[step] = score
        ours = sorted(keep.kept({s: history[s] for s in [*ours, step]}))
        theirs = expected(history, [*theirs, step], keep)
        assert ours == theirs
        assert step in ours


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([3, 1, math.nan, 5, 4], {1, 2, 5}),  # Orbax's own BestN deletes step 2 here, the best one
        ([3, 1, 2, 5, math.nan], {2, 3, 5}),
        ([math.nan] * 3, {3}),
    ],
)
def test_a_loss_that_is_not_a_number_is_never_among_the_best(losses, kept):
    scores = {step: -loss for step, loss in enumerate(losses, start=1)}
    assert Retention(newest=1, best=2).kept(scores) == kept
