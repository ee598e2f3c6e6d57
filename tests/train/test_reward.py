"""Reward modelling on a table of values: which token is scored, and what cannot matter."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tables import table_of_values

from gptjax.data.candidates import packed
from gptjax.losses.preference import ranking_loss
from gptjax.model.config import ModelConfig
from gptjax.model.pure import scalar_model
from gptjax.run.mesh import put
from gptjax.train.reward import RewardConfig, candidate_scores, reward_step
from gptjax.train.rollout import last_score
from gptjax.train.update import initial_state
from gptjax.types import PackedCandidates, RatingBatch, RewardBatch

SGD, MODEL = optax.sgd(1.0), table_of_values()
STEP = jax.jit(partial(reward_step, model=MODEL, optimizer=SGD))
TOKENS = np.array([[[3, 1, 2, 0], [3, 0, 0, 0], [3, 2, 0, 0]], [[3, 3, 3, 1], [3, 3, 2, 2], [0, 0, 0, 0]]], np.int32)
LENGTHS = np.array([[3, 1, 2], [4, 2, 0]], np.int32)
RANKS = np.array([[1, 2, 3], [2, 1, 0]], np.int32)


def batch(mesh, tokens=TOKENS, lengths=LENGTHS, ranks=RANKS):
    """Packed into rows that are twice as wide as the candidates' array."""
    return put(packed(RewardBatch(tokens_BCT=tokens, lengths_BC=lengths, ranks_BC=ranks), 2 * tokens.shape[2]), mesh)


def updated(batch, values=(0.1, 0.7, -0.4, 0.3)):
    state = initial_state({"value": jnp.asarray(values, jnp.float32)}, SGD, jax.random.key(0))
    after, metrics = STEP(state, batch)
    return np.asarray(after.params["value"]), metrics


def test_the_last_real_token_is_scored(one_device):
    # last tokens 2, 3, 2 and 1, 3, none: tokens that hold the pad value 0 inside the length count too
    params = {"value": jnp.asarray([10.0, 11.0, 12.0, 13.0])}
    found = candidate_scores(params, {}, batch(one_device), model=MODEL)
    np.testing.assert_array_equal(found, [[12, 13, 12], [11, 13, 0]])
    ends_in_pad = batch(one_device, lengths=np.array([[4, 2, 3], [4, 2, 0]], np.int32))
    np.testing.assert_array_equal(candidate_scores(params, {}, ends_in_pad, model=MODEL)[0], [10, 10, 10])


def test_a_prompt_weighs_as_much_as_another_whatever_its_number_of_pairs(one_device):
    # all values 0, so every pair's slope is -1/2 for the better and 1/2 for the worse.
    # prompt 0, three pairs: candidate 0 (token 2) -1/3, candidate 1 (token 3) 0, candidate 2 (token 2) +1/3
    # prompt 1, one pair: candidate 1 (token 3) -1/2, candidate 0 (token 1) +1/2; the mean over two prompts halves it
    value, metrics = updated(batch(one_device), (0.0, 0.0, 0.0, 0.0))
    np.testing.assert_allclose(value, [0, -0.25, 0, 0.25], atol=1e-6)
    np.testing.assert_allclose(metrics["reward/loss_nats"], np.log(2), rtol=1e-6)
    assert (int(metrics["reward/prompts"]), int(metrics["reward/pairs"])) == (2, 4)


def test_a_step_by_hand(one_device):
    # one pair, last tokens 2 (better) and 1: d = -.4 - .7 = -1.1, slope sigmoid(1.1) = .750260
    tokens, lengths, ranks = [[[3, 1, 2], [3, 1, 0]]], [[3, 2]], [[1, 2]]
    pair = batch(one_device, *(np.array(x, np.int32) for x in (tokens, lengths, ranks)))
    value, metrics = updated(pair)
    slope = 1 / (1 + np.exp(-1.1))
    np.testing.assert_allclose(value, [0.1, 0.7 - slope, -0.4 + slope, 0.3], atol=1e-6)
    np.testing.assert_allclose(metrics["reward/loss_nats"], np.log1p(np.exp(1.1)), rtol=1e-6)
    assert float(metrics["reward/accuracy"]) == 0.0
    np.testing.assert_allclose([metrics["reward/score_mean"], metrics["reward/score_std"]], [0.15, 0.55], rtol=1e-5)


def test_what_stands_in_the_padding_changes_nothing(one_device):
    inside = np.arange(4) < LENGTHS[:, :, None]
    other = np.where(inside, TOKENS, 1).astype(np.int32)
    longer = np.pad(other, ((0, 0), (0, 1), (0, 2)), constant_values=2)
    wider = [np.pad(x, ((0, 0), (0, 1))) for x in (LENGTHS, RANKS)]
    value, metrics = updated(batch(one_device))
    for same in (batch(one_device, other), batch(one_device, longer, *wider)):
        value_same, metrics_same = updated(same)
        np.testing.assert_allclose(value_same, value, atol=1e-7)
        for name in metrics:
            np.testing.assert_allclose(metrics_same[name], metrics[name], atol=1e-6, err_msg=name)


def test_the_order_of_candidates_and_prompts_changes_nothing(one_device):
    turned = batch(one_device, *(x[::-1][:, [2, 0, 1]] for x in (TOKENS, LENGTHS, RANKS)))
    np.testing.assert_allclose(updated(turned)[0], updated(batch(one_device))[0], atol=1e-6)


def test_ties_alone_teach_nothing(one_device):
    value, metrics = updated(batch(one_device, ranks=np.array([[1, 1, 1], [2, 2, 0]], np.int32)))
    np.testing.assert_array_equal(value, np.array([0.1, 0.7, -0.4, 0.3], np.float32))
    assert (float(metrics["reward/loss_nats"]), int(metrics["reward/prompts"])) == (0.0, 0)


def test_the_score_stands_at_length_minus_1_even_where_pad_is_the_end_token(one_device):
    # pad = end = 0.  Row 0: 5 tokens, the second of them an end token; row 1: all 7 columns, no pad.  Positions 4 and
    # 6; "the first pad minus one" would be 0 and -1
    tokens = np.array([[[5, 0, 6, 7, 0, 0, 0], [5, 6, 7, 8, 9, 8, 4]]], np.int32)
    positions = dataclasses.replace(
        MODEL,
        values=lambda params, frozen, tokens_BT, segments_BT, positions_BT: (positions_BT.astype(jnp.float32), None),
    )
    given = batch(one_device, tokens, np.array([[5, 7]], np.int32), np.array([[1, 2]], np.int32))
    found = candidate_scores({}, {}, given, model=positions)
    np.testing.assert_array_equal(found, [[4, 6]])
    assert not np.isin(found, [0, -1]).any()


def test_options_reach_the_loss_and_leave_the_reported_likelihood_alone(one_device):
    # one pair, d = -.4 - .7 = -1.1, gap 1: margin .5 of the gap + .25 of the pair, sum of scores .3, smoothed by .1
    margins = np.zeros((1, 2, 2), np.float32)
    margins[0, 0, 1] = 0.25
    tokens, lengths, ranks = [[[3, 1, 2], [3, 1, 0]]], [[3, 2]], [[1, 2]]
    given = RewardBatch(
        tokens_BCT=np.array(tokens, np.int32),
        lengths_BC=np.array(lengths, np.int32),
        ranks_BC=np.array(ranks, np.int32),
        margins_BCC=margins,
    )
    config = RewardConfig(gap_margins=(0.5, 2.0), label_smoothing=0.1, center=0.01)
    state = initial_state({"value": jnp.asarray([0.1, 0.7, -0.4, 0.3])}, SGD, jax.random.key(0))
    _, metrics = jax.jit(partial(reward_step, model=MODEL, optimizer=SGD, config=config))(
        state, put(packed(given, 8), one_device)
    )
    expected = 0.9 * np.log1p(np.exp(1.85)) + 0.1 * np.log1p(np.exp(-1.1 + 0.75)) + 0.01 * 0.3**2
    np.testing.assert_allclose(metrics["reward/loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["reward/loss_nats"], np.log1p(np.exp(1.1)), rtol=1e-6)
    np.testing.assert_allclose(metrics["reward/center"], 0.09, rtol=1e-5)


def test_a_step_towards_ratings_by_hand(one_device):
    # last tokens 2 and 1, values 0: ratings 7 (weight 1) and 2 (weight 2) are 3 and -2 above the middle
    # loss (9 + 2 * 4) / 3; gradients 2 * -3 / 3 = -2 and 2 * 2 * 2 / 3 = 8 / 3; the third response is not rated
    given = RatingBatch(
        tokens_BCT=np.array([[[3, 1, 2], [3, 1, 0], [3, 3, 3]]], np.int32),
        lengths_BC=np.array([[3, 2, 3]], np.int32),
        ratings_BC=np.array([[7, 2, 0]], np.float32),
        weights_BC=np.array([[1, 2, 0]], np.float32),
    )
    state = initial_state({"value": jnp.zeros(4)}, SGD, jax.random.key(0))
    step = jax.jit(partial(reward_step, model=MODEL, optimizer=SGD, config=RewardConfig(objective="rating")))
    after, metrics = step(state, put(packed(given, 8), one_device))
    np.testing.assert_allclose(after.params["value"], [0, -8 / 3, 2, 0], atol=1e-6)
    np.testing.assert_allclose(metrics["reward/loss"], 17 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["reward/absolute_error_points"], 7 / 3, rtol=1e-6)
    assert int(metrics["reward/ratings"]) == 2


def broken_step(function, state, batch):
    """A step of the table whose values pass through a function that is NaN at token 2, whose value is -1."""
    broken = dataclasses.replace(MODEL, values=lambda params, *rest: (function(MODEL.values(params, *rest)[0]), None))
    return jax.jit(partial(reward_step, model=broken, optimizer=ADAM))(state, batch)


ADAM = optax.adam(0.1)


def test_a_score_that_is_not_finite_is_left_out_of_the_update(one_device):
    # log(-1) is NaN but its slope -1 is not: the pairs without token 2 are learnt
    state = initial_state({"value": jnp.asarray([1.0, 2.0, -1.0, 3.0])}, ADAM, jax.random.key(0))
    after, metrics = broken_step(jnp.log, state, batch(one_device))
    moved = np.asarray(after.params["value"]) != np.asarray(state.params["value"])
    assert moved.tolist() == [False, True, False, True]
    assert (int(metrics["optim/updates_skipped"]), int(metrics["reward/not_finite"])) == (0, 2)


def test_an_update_that_is_not_finite_is_not_made_but_counted(one_device):
    # the slope of sqrt at -1 is NaN, and 0 * NaN reaches the parameters
    state = initial_state({"value": jnp.asarray([1.0, 2.0, -1.0, 3.0])}, ADAM, jax.random.key(0))
    after, metrics = broken_step(jnp.sqrt, state, batch(one_device))
    chex.assert_trees_all_equal((after.params, after.opt_state), (state.params, state.opt_state))
    assert (int(metrics["optim/updates_skipped"]), int(metrics["reward/not_finite"]), int(after.step)) == (1, 2, 1)
    assert np.isfinite([float(metrics[name]) for name in ("reward/loss", "reward/score_mean")]).all()


TINY = ModelConfig(vocab_size=16, layers=2, width=16, heads=2, max_length=16, dropout=0.5)


@pytest.fixture
def transformer(one_device):
    """(model, parameters drawn by NumPy: nothing to compile)."""
    model, rng = scalar_model(TINY), np.random.default_rng(5)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    everywhere = jax.sharding.NamedSharding(one_device, jax.sharding.PartitionSpec())
    params = jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype), shapes)
    return model, jax.device_put(params, everywhere)


def test_padding_on_the_left_or_on_the_right_gives_the_same_score(transformer, one_device):
    # as trained (right) and as in a rollout (left), with more padding, too
    rng = np.random.default_rng(0)
    lengths = np.array([3, 8, 5, 1])
    rows = [rng.integers(0, 16, length) for length in lengths]
    right, left = np.zeros((2, 4, 8), np.int32)
    for row, ids in enumerate(rows):
        right[row, : len(ids)], left[row, 8 - len(ids) :] = ids, ids
    real = np.arange(8)[None] >= 8 - lengths[:, None]
    model, params = transformer
    segments, positions = real.astype(np.int32), (real.cumsum(1) - 1).clip(0).astype(np.int32)
    rows = put(RolloutRows(tokens_BT=left, segments_BT=segments, positions_BT=positions), one_device)
    by_rollout = jax.jit(partial(last_score, model))(params, {}, vars(rows))
    wider = np.pad(right, ((0, 0), (0, 3)), constant_values=7)[None]
    given = batch(one_device, wider, lengths[None].astype(np.int32), np.ones((1, 4), np.int32))
    found = jax.jit(partial(candidate_scores, model=model))(params, {}, given)
    np.testing.assert_allclose(found[0], by_rollout, atol=1e-5)
    assert np.ptp(found) > 0.1


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class RolloutRows:
    tokens_BT: np.ndarray
    segments_BT: np.ndarray
    positions_BT: np.ndarray


def test_padding_content_changes_no_bit_and_nothing_is_dropped_out(transformer, one_device):
    model, params = transformer
    step = jax.jit(partial(reward_step, model=model, optimizer=SGD))
    rows = packed(RewardBatch(tokens_BCT=TOKENS, lengths_BC=LENGTHS, ranks_BC=RANKS), 8)
    other = dataclasses.replace(rows, tokens_BT=np.where(rows.segments_BT > 0, rows.tokens_BT, 9).astype(np.int32))
    expected, metrics = step(initial_state(params, SGD, jax.random.key(0)), put(rows, one_device))
    found, same = step(initial_state(params, SGD, jax.random.key(1)), put(other, one_device))  # another key, too
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), expected.params, params)
    assert any(jax.tree.leaves(changed))
    chex.assert_trees_all_equal((found.params, same), (expected.params, metrics))


def drawn_batch(rng, prompts=4, candidates=5, length=8):
    """Ranked candidates of random lengths, some of them absent; tokens 1 to 15."""
    lengths = rng.integers(1, length + 1, (prompts, candidates), np.int32)
    lengths[:, -1] *= rng.integers(0, 2, prompts, np.int32)
    ranks = np.where(lengths > 0, rng.integers(1, 4, lengths.shape), 0).astype(np.int32)
    tokens = rng.integers(1, 16, (prompts, candidates, length), np.int32)
    return RewardBatch(tokens_BCT=tokens, lengths_BC=lengths, ranks_BC=ranks)


def alone(given):
    """Each candidate in a row of its own, padded on the right."""
    length = given.tokens_BCT.shape[2]
    lengths_B1 = given.lengths_BC.reshape(-1, 1)
    column_BT = np.broadcast_to(np.arange(length, dtype=np.int32), (len(lengths_B1), length))
    last_B1 = np.arange(len(lengths_B1))[:, None] * length + np.maximum(lengths_B1 - 1, 0)
    return PackedCandidates(
        tokens_BT=given.tokens_BCT.reshape(-1, length),
        segments_BT=(column_BT < lengths_B1).astype(np.int32),
        positions_BT=column_BT,
        last_BC=last_B1.reshape(given.lengths_BC.shape).astype(np.int32),
        judged=dataclasses.replace(given, tokens_BCT=None),
    )


def test_a_packed_step_equals_the_step_on_candidates_in_rows_of_their_own(transformer, one_device):
    model, params = transformer
    step = jax.jit(partial(reward_step, model=model, optimizer=SGD))
    for seed in range(5):
        given = drawn_batch(np.random.default_rng(seed))
        rows = packed(given, 16, rows=9)
        assert rows.tokens_BT.shape == (9, 16)  # instead of 20 rows of 8, 2 to 6 candidates in most of them
        state = initial_state(params, SGD, jax.random.key(0))
        expected, metrics = step(state, put(alone(given), one_device))
        found, same = step(state, put(rows, one_device))
        assert metrics["optim/grad_norm"] > 0.01
        for name, value in metrics.items():
            np.testing.assert_allclose(same[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        chex.assert_trees_all_close(found.params, expected.params, rtol=1e-5, atol=1e-5)


def test_a_candidate_does_not_feel_what_else_is_in_its_row(transformer, one_device):
    # three candidates fill one row; the middle one has tokens 1 to 4, its neighbours tokens above
    model, params = transformer
    tokens = np.array([[[9, 10, 11, 12], [1, 2, 3, 4], [13, 14, 15, 9]]], np.int32)
    lengths, ranks = np.array([[4, 3, 3]], np.int32), np.array([[1, 2, 3]], np.int32)
    given = packed(RewardBatch(tokens_BCT=tokens, lengths_BC=lengths, ranks_BC=ranks), 10)
    assert given.segments_BT.tolist() == [[1] * 4 + [2] * 3 + [3] * 3]
    other = np.where(given.segments_BT != 2, 16 - given.tokens_BT, given.tokens_BT).astype(np.int32)

    def middle(params, rows):
        return jnp.sum(jnp.where(jnp.arange(3)[None] == 1, candidate_scores(params, {}, rows, model=model), 0.0))

    score = jax.jit(jax.value_and_grad(middle))
    value, grads = score(params, put(given, one_device))
    changed, _ = score(params, put(dataclasses.replace(given, tokens_BT=other), one_device))
    assert float(value) == float(changed) != 0.0
    slope_V = np.abs(grads["trunk"]["embedding_VD"]).sum(axis=1)
    assert np.flatnonzero(slope_V).tolist() == [1, 2, 3]


def test_a_trained_table_approaches_the_ceiling_of_bradley_terry_labels(one_device):
    # eight tokens with true values; a candidate is one token; labels drawn with probability sigmoid(difference)
    rng = np.random.default_rng(0)
    gold = rng.normal(size=8) * 1.5

    def drawn(prompts):
        tokens = np.stack([rng.permutation(8)[:2] for _ in range(prompts)]).astype(np.int32)
        difference = gold[tokens[:, 0]] - gold[tokens[:, 1]]
        first = rng.random(prompts) < 1 / (1 + np.exp(-difference))
        return tokens, np.where(first[:, None], [1, 2], [2, 1]).astype(np.int32), difference

    tokens, ranks, _ = drawn(4000)
    given = batch(one_device, tokens[:, :, None], np.ones((4000, 2), np.int32), ranks)
    adam = optax.adam(0.1)
    state = initial_state({"value": jnp.zeros(8)}, adam, jax.random.key(0))
    step = jax.jit(partial(reward_step, model=MODEL, optimizer=adam))
    for _ in range(60):
        state, _ = step(state, given)
    tokens, ranks, difference = drawn(20_000)
    _, _, aux = ranking_loss(state.params["value"][tokens], jnp.asarray(ranks))
    accuracy = float(aux["correct"] / aux["pairs"])
    ceiling = float(np.mean(1 / (1 + np.exp(-np.abs(difference)))))
    error = np.sqrt(ceiling * (1 - ceiling) / 20_000)
    assert ceiling - 0.02 < accuracy < ceiling + 3 * error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.5}, r"reward\.label_smoothing must lie in \[0, \.5\), got 0\.5"),
        ({"center": -1.0}, r"reward\.center must be at least 0 and finite, got -1\.0"),
        ({"center": float("nan")}, r"reward\.center must be at least 0 and finite, got nan"),
        ({"gap_margins": (1.0, float("inf"))}, r"reward\.gap_margins must be finite"),
        ({"objective": "pairs"}, r"reward\.objective: choose one of ranking, choice, rating, got 'pairs'"),
        ({"normalisation": "none"}, r"reward\.normalisation: choose one of demonstrations, reference, got 'none'"),
        ({"objective": "choice", "center": 0.1}, r"reward\.center belongs to objective 'ranking', not to 'choice'"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**options)


def test_ratings_and_ranks_are_not_mixed_up(one_device):
    state = initial_state({"value": jnp.zeros(4)}, SGD, jax.random.key(0))
    with pytest.raises(ValueError, match=r"reward\.objective 'rating' does not go with a RewardBatch"):
        reward_step(state, batch(one_device), model=MODEL, optimizer=SGD, config=RewardConfig(objective="rating"))
