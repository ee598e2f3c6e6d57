"""One token from logits: which tokens can come, and how often they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gptjax.nn.sampling import sample

P = np.array([0.4, 0.1, 0.3, 0.15, 0.05])


@pytest.fixture
def counts(one_device):
    """How often each token comes in 8,000 draws from P."""

    def get(**options):
        logits_BV = jnp.broadcast_to(jnp.log(jnp.asarray(P))[None], (8000, 5))
        return np.bincount(sample(logits_BV, jax.random.key(0), **options), minlength=5)

    return get


def consistent(found, p):
    p = np.asarray(p) / np.sum(p)
    assert not found[p == 0].any()
    return np.sum(p > 0) == 1 or stats.chisquare(found[p > 0], 8000 * p[p > 0]).pvalue > 1e-3


def test_tokens_come_as_often_as_softmax_says(counts):
    found = counts()
    assert consistent(found, P)
    assert not consistent(found, P**0.9)  # 8,000 draws are enough to tell a temperature of 1.1


def test_temperature_sharpens_and_flattens(counts):
    # p ** (1 / T), normalised
    assert consistent(counts(temperature=0.5), P**2)
    assert consistent(counts(temperature=2.0), P**0.5)


def test_temperature_zero_takes_the_most_likely_token(counts):
    assert counts(temperature=0.0).tolist() == [8000, 0, 0, 0, 0]


@pytest.mark.parametrize(("top_k", "kept"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 3]), (99, [0, 1, 2, 3, 4])])
def test_top_k_keeps_the_k_most_likely_at_their_proportions(counts, top_k, kept):
    assert consistent(counts(top_k=top_k), np.where(np.isin(range(5), kept), P, 0))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [0]), (0.5, [0, 2]), (0.75, [0, 2, 3]), (0.9, [0, 1, 2, 3]), (0.97, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(counts, top_p, kept):
    # sorted: .4 .3 .15 .1 .05, running sums .4 .7 .85 .95 1
    assert consistent(counts(top_p=top_p), np.where(np.isin(range(5), kept), P, 0))


def test_top_p_looks_at_what_temperature_and_top_k_left(counts):
    # at T = 1/2: p**2 = .16 .01 .09 .0225 .0025, of the first two .64 and .36; top-p .6 leaves the first
    assert counts(temperature=0.5, top_k=2, top_p=0.6).tolist() == [8000, 0, 0, 0, 0]


def test_a_draw_follows_its_key(one_device):
    logits_BV = jnp.zeros((64, 7))
    first, again, other = (np.asarray(sample(logits_BV, jax.random.key(k))) for k in (1, 1, 2))
    assert first.dtype == np.int32
    assert (first == again).all()
    assert (first != other).any()
    assert len(set(first.tolist())) == 7  # rows draw apart from one another
