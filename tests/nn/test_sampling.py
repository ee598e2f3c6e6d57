"""One token from logits: which tokens can come, and how often they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gptjax.nn.sampling import sample
from gptjax.run.mesh import MeshConfig, make_mesh

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


def test_tokens_of_many_groups_come_as_often_as_softmax_says(one_device):
    # 200 tokens are drawn in groups of 64, the last one ragged; a third of them has no mass, whole groups' ends too
    rng = np.random.default_rng(0)
    p = np.where(np.arange(200) % 3 == 0, 0.0, rng.gamma(1.0, size=200))
    p[60:70] = p[190:] = 0.0
    logits_BV = jnp.broadcast_to(jnp.log(jnp.asarray(p / p.sum()))[None], (40_000, 200))
    found = np.bincount(sample(logits_BV, jax.random.key(3)), minlength=200)
    assert not found[p == 0].any()
    assert stats.chisquare(found[p > 0], 40_000 * p[p > 0] / p.sum()).pvalue > 1e-3


def test_a_draw_does_not_depend_on_the_mesh():
    logits = np.random.default_rng(0).normal(size=(16, 100)).astype(np.float32)
    draws = []
    for config in (MeshConfig(data=1), MeshConfig(data=2, fsdp=2, tensor=2)):
        mesh = make_mesh(config, jax.devices()[: np.prod(config.sizes(8 if config.tensor == 2 else 1))])
        with jax.set_mesh(mesh):
            spread = jax.device_put(logits, jax.NamedSharding(mesh, jax.P(("data", "fsdp"), "tensor")))
            draws.append(np.asarray(jax.jit(sample)(spread, jax.random.key(5))))
    assert (draws[0] == draws[1]).all()


def test_rounding_of_logits_hardly_changes_a_draw(one_device):
    # another layout adds in another order; of one uniform number against cumulated probabilities, four differ
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (8, 4096)).repeat(1024, axis=0).astype(np.float32)
    rounded = logits * (1 + 3e-7 * rng.choice([-1, 1], (8, 4096)).repeat(1024, axis=0)).astype(np.float32)
    key = jax.random.key(2)
    assert np.sum(np.asarray(sample(jnp.asarray(logits), key)) != np.asarray(sample(jnp.asarray(rounded), key))) <= 1
