"""Masked language modelling: what is selected, what becomes of it, and that masks are a function of seed and place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.masking import corrupted, masked
from gptjax.data.packing import pack
from gptjax.losses.cross_entropy import nll_sums

LM5 = GOLDEN["LM5_masked_lm"]
SPECIAL_V = np.arange(50) < 8
MASK = 7


@pytest.fixture(scope="module")
def rows():
    """2,000 rows of 63 ordinary tokens after a BOS (2), and one place of padding (0)."""
    rng = np.random.default_rng(0)
    return pack([[2, *rng.integers(8, 50, 63)] for _ in range(2000)], 65)[0]


def mask(rows, place=0, seed=0, **options):
    return masked(rows, place, seed, special_V=SPECIAL_V, mask_id=MASK, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_golden_masking(dtype):
    inputs, expected = LM5["inputs"], LM5["expected"]
    draws = (np.array(inputs[name]) for name in ("u_select", "u_operation", "random_ids"))
    tokens, special = np.array(inputs["tokens"]), np.array(inputs["special"], bool)
    found, selected = corrupted(tokens, ~special, *draws, mask_id=inputs["mask_id"])
    assert selected.astype(int).tolist() == expected["selected"]
    assert found.tolist() == expected["corrupted"]
    assert np.where(selected, tokens, -100).tolist() == expected["labels"]
    with jax.enable_x64(dtype == "float64"):
        logp = jnp.asarray(inputs["logprob_of_original"], dtype)
        logits_BTV = jnp.stack([logp, jnp.log1p(-jnp.exp(logp))], axis=-1)[None]  # token 0 is the original
        sums = nll_sums(logits_BTV, jnp.zeros((1, 8), int), jnp.asarray(selected, dtype)[None])
        tolerance = 1e-9 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(sums.nll_sum / sums.weight_sum, expected["loss"], rtol=tolerance)


def test_fifteen_percent_are_selected_and_of_them_80_10_10_are_hidden_replaced_and_kept(rows):
    # 126,000 ordinary tokens: three standard errors of the shares are 0.003 and, of 18,900 selected, 0.009
    found = mask(rows)
    selected = found.weights_BT > 0
    assert selected.sum() / (2000 * 63) == pytest.approx(0.15, abs=0.003)
    before, after = rows.tokens_BT[selected], found.tokens_BT[selected]
    assert (after == MASK).mean() == pytest.approx(0.8, abs=0.009)
    # a random token is the token itself once in 42
    assert (after == before).mean() == pytest.approx(0.1 + 0.1 / 42, abs=0.009)
    replaced = after[(after != before) & (after != MASK)]
    assert set(replaced.tolist()) == set(range(8, 50))
    assert selected[:, 1:-1].mean(axis=0).std() < 0.02  # every place of a row alike


def test_special_tokens_and_padding_are_never_selected(rows):
    found = mask(rows, fraction=1.0)
    np.testing.assert_array_equal(found.weights_BT, (rows.tokens_BT >= 8) & (rows.segments_BT > 0))
    np.testing.assert_array_equal(found.tokens_BT[:, [0, 64]], rows.tokens_BT[:, [0, 64]])
    # padding that carries an ordinary id is told by its segment
    padded = pack([[2, 9]], 8, pad_id=9)[0]
    assert mask(padded, fraction=1.0).weights_BT.tolist() == [[0, 1, 0, 0, 0, 0, 0, 0]]


@settings(deadline=None, max_examples=50)
@given(place=st.integers(0, 2**40), seed=st.integers(0, 2**31), fraction=st.floats(0.01, 1.0))
def test_targets_are_the_tokens_themselves_and_what_is_not_selected_stays(rows, place, seed, fraction):
    few = type(rows)(**{name: values[:3] for name, values in vars(rows).items()})
    found = mask(few, place, seed, fraction=fraction)
    np.testing.assert_array_equal(found.targets_BT, few.tokens_BT)
    changed = found.tokens_BT != few.tokens_BT
    assert (found.weights_BT[changed] == 1).all()
    assert set(found.weights_BT.ravel().tolist()) <= {0.0, 1.0}
    for name in ("segments_BT", "positions_BT"):
        np.testing.assert_array_equal(getattr(found, name), getattr(few, name))


def test_masks_follow_from_seed_and_place_and_are_new_in_each_epoch(rows):
    first, again, epoch_2, other_seed = mask(rows), mask(rows), mask(rows, place=2000), mask(rows, seed=1)
    np.testing.assert_array_equal(first.tokens_BT, again.tokens_BT)
    for other in (epoch_2, other_seed):
        # independent: a token selected once is selected again with 15 %
        both = (first.weights_BT * other.weights_BT).sum() / first.weights_BT.sum()
        assert both == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize("length", [64, 65, 66, 67])  # 3 x length numbers, not always whole counts of four
def test_any_cut_of_a_batch_gives_the_same_masks(length):
    rows = pack([list(range(8, 8 + length % 40)) * 2 for _ in range(6)], length)[0]
    whole = mask(rows, place=10)
    parts = [
        mask(type(rows)(**{name: values[cut] for name, values in vars(rows).items()}), place=10 + cut.start)
        for cut in (slice(0, 2), slice(2, 3), slice(3, len(rows.tokens_BT)))
    ]
    np.testing.assert_array_equal(whole.tokens_BT, np.concatenate([part.tokens_BT for part in parts]))


def test_impossible_masks_are_refused(rows):
    with pytest.raises(ValueError, match=r"fraction of masked tokens must lie in \(0, 1\], got 1.5"):
        mask(rows, fraction=1.5)
    with pytest.raises(ValueError, match="all 50 tokens of the vocabulary are special"):
        masked(rows, 0, 0, special_V=np.ones(50, bool), mask_id=MASK)
