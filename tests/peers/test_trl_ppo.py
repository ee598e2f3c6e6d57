"""PPO's functions against TRL's own code on the same random inputs, in float64; where TRL differs, by exactly how much.

    pip install -e '.[test,peers]'
    pytest tests/peers

The maths of TRL's PPO lies inside `PPOTrainer.train`, so these tests run lines of the installed method.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.cross_entropy import token_logp
from gptjax.losses.policy import clipped_surrogate, clipped_value_loss, kl_estimates, masked_sum
from gptjax.losses.returns import gae, kl_shaped_rewards, whitened

torch = pytest.importorskip("torch")
ppo_trainer = pytest.importorskip("trl.experimental.ppo.ppo_trainer")
excerpt = pytest.importorskip("excerpt").excerpt

pytestmark = pytest.mark.usefixtures("x64")
ROWS, RESPONSE, VOCABULARY, CONTEXT = 5, 7, 11, 3
LENGTHS = np.array([7, 4, 1, 6, 2])  # the first response has no room for a slot after its end
TRAIN = ppo_trainer.PPOTrainer.train
INVALID = ppo_trainer.INVALID_LOGPROB
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def drawn():
    """Random inputs, and the masks of both: true on responses (gptjax), true on padding (TRL)."""
    rng = np.random.default_rng(0)
    shape = (ROWS, RESPONSE)
    index = np.broadcast_to(np.arange(RESPONSE), shape)
    return SimpleNamespace(
        logp=rng.normal(-2, 0.5, shape),
        logp_ref=rng.normal(-2, 0.5, shape),
        values=rng.normal(0, 1, shape),
        returns=rng.normal(0, 1, shape),
        advantages=rng.normal(0, 1, shape),
        logits=rng.normal(0, 1, (ROWS, CONTEXT + RESPONSE, VOCABULARY)),
        values_new=rng.normal(0, 1, (ROWS, CONTEXT + RESPONSE)),
        tokens=rng.integers(0, VOCABULARY, shape),
        scores=rng.normal(0, 1, ROWS),
        mask=index < LENGTHS[:, None],
        longer=index < LENGTHS[:, None] + 1,  # with the slot after the end, where TRL puts the score
    )


def settings(**changes):
    fixed = {"kl_coef": 0.3, "kl_estimator": "k1", "whiten_rewards": False, "gamma": 0.97, "lam": 0.9}
    return SimpleNamespace(
        **(fixed | {"temperature": 0.7, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.5} | changes)
    )


def trl_advantages(drawn, **changes):
    """TRL's rewards, advantages before whitening, and returns."""
    padding, padding_p1 = torch.tensor(~drawn.mask), torch.tensor(~drawn.longer)
    names = {
        "args": settings(**changes),
        "logprobs": torch.tensor(drawn.logp).masked_fill(padding, INVALID),
        "ref_logprobs": torch.tensor(drawn.logp_ref).masked_fill(padding, INVALID),
        "values": torch.tensor(drawn.values).masked_fill(padding_p1, 0),
        "scores": torch.tensor(drawn.scores),
        "responses": torch.tensor(drawn.tokens),
        "sequence_lengths": torch.tensor(LENGTHS - 1),
        "sequence_lengths_p1": torch.tensor(LENGTHS),
        "padding_mask_p1": padding_p1,
    }
    rewards = excerpt(TRAIN, "logr = ref_logprobs - logprobs", "rewards[actual_start, actual_end] += scores")
    whitening = excerpt(TRAIN, "if args.whiten_rewards:", "rewards = torch.masked_fill(rewards, padding_mask_p1, 0)")
    returns = excerpt(TRAIN, "lastgaelam = 0", "returns = advantages + values")
    return returns(**whitening(**rewards(**names)))


def sample_ratio(x, mask) -> float:
    """TRL's standard deviation (the sample's, n / (n - 1) rounded to float32) over gptjax's (the population's)."""
    mask = torch.tensor(mask)
    population = float(ppo_trainer.masked_var(torch.tensor(np.array(x)), mask, unbiased=False))
    n = float(mask.sum())
    assert np.sqrt(n / (n - 1)) > 1.01
    return np.sqrt((population * float(np.float32(n / (n - 1))) + 1e-8) / (population + 1e-8))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_trl_up_to_its_sample_variance(drawn, shift_mean):
    mask = torch.tensor(drawn.mask)
    theirs = ppo_trainer.masked_whiten(torch.tensor(drawn.values), mask, shift_mean).numpy()[drawn.mask]
    ours = np.asarray(whitened(drawn.values, drawn.mask, shift_mean=shift_mean))
    mean = drawn.values[drawn.mask].mean() * (not shift_mean)
    np.testing.assert_allclose(
        ours[drawn.mask] - mean, (theirs - mean) * sample_ratio(drawn.values, drawn.mask), **CLOSE
    )
    assert np.all(ours[~drawn.mask] == 0)


def test_kl_shaped_rewards_equal_trl_but_for_the_slot_of_the_score(drawn):
    theirs = trl_advantages(drawn)["rewards"].numpy()
    ours = np.array(kl_shaped_rewards(drawn.scores, drawn.logp, drawn.logp_ref, drawn.mask, kl_coefficient=0.3))
    rows, last = np.arange(ROWS), LENGTHS - 1
    slot = np.where(LENGTHS < RESPONSE, last + 1, last)  # one after the end, if there is room
    assert np.any(slot != last)
    ours[rows, last] -= drawn.scores
    theirs[rows, slot] -= drawn.scores
    np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_the_k3_reward_that_trl_offers_is_minus_the_coefficient_times_k3(drawn):
    theirs = trl_advantages(drawn, kl_estimator="k3")["non_score_reward"].numpy()
    np.testing.assert_allclose(-0.3 * kl_estimates(drawn.logp, drawn.logp_ref, drawn.mask)[2], theirs, **CLOSE)


@pytest.mark.parametrize("whiten", [False, True])
def test_advantages_and_returns_equal_trl_where_the_score_has_its_slot(drawn, whiten):
    """With the mask one slot longer, where policy and reference agree, gptjax's functions are TRL's."""
    logp = np.where(drawn.mask, drawn.logp, INVALID)
    logp_ref = np.where(drawn.mask, drawn.logp_ref, INVALID)
    rewards = kl_shaped_rewards(drawn.scores, logp, logp_ref, drawn.longer, kl_coefficient=0.3)
    if whiten:
        mean = jnp.mean(rewards[drawn.longer])
        centred = whitened(rewards, drawn.longer) / sample_ratio(rewards, drawn.longer)
        rewards = jnp.where(drawn.longer, centred + mean, 0.0)
    advantages, returns = gae(rewards, jnp.asarray(drawn.values), drawn.longer, discount=0.97, trace=0.9)
    theirs = trl_advantages(drawn, whiten_rewards=whiten)
    np.testing.assert_allclose(advantages, theirs["advantages"].numpy(), **CLOSE)
    np.testing.assert_allclose(returns, theirs["returns"].numpy(), **CLOSE)


def test_trl_advantages_differ_by_the_late_score_carried_back_with_one_more_lambda(drawn):
    """At the end token TRL has g V' + g l (score - V') for the score, V' the value of the slot after the end."""
    discount, trace = 0.97, 0.9
    rewards = kl_shaped_rewards(drawn.scores, drawn.logp, drawn.logp_ref, drawn.mask, kl_coefficient=0.3)
    ours, _ = gae(rewards, jnp.asarray(drawn.values), drawn.mask, discount=discount, trace=trace)
    theirs = trl_advantages(drawn)["advantages"].numpy()
    full = LENGTHS == RESPONSE
    after = drawn.values[np.arange(ROWS), np.minimum(LENGTHS, RESPONSE - 1)]
    at_end = discount * after + discount * trace * (drawn.scores - after) - drawn.scores
    at_end = np.where(full, 0.0, at_end)
    distance = LENGTHS[:, None] - 1 - np.arange(RESPONSE)
    expected = np.where(drawn.mask, at_end[:, None] * (discount * trace) ** np.maximum(distance, 0), 0.0)
    np.testing.assert_allclose(np.where(drawn.mask, theirs - ours, 0.0), expected, **CLOSE)
    assert np.abs(expected).max() > 0.1


def trl_update(drawn, value_mask):
    """TRL's losses of a minibatch and their gradients in logits and values; its values have a mask of their own."""
    logits = torch.tensor(drawn.logits, requires_grad=True)
    values = torch.tensor(drawn.values_new, requires_grad=True)
    padding, value_padding = torch.tensor(~drawn.mask), torch.tensor(~value_mask)
    names = {
        "args": settings(),
        "context_length": CONTEXT,
        "output": SimpleNamespace(logits=logits * 1.0),  # TRL divides in place, which torch forbids on a leaf
        "vpred_temp": values[:, :, None],
        "micro_batch_inds": np.arange(ROWS),
        "padding_mask": padding,
        "padding_mask_p1": value_padding,
        "mb_responses": torch.tensor(drawn.tokens),
        "mb_logprobs": torch.tensor(drawn.logp).masked_fill(padding, INVALID),
        "mb_values": torch.tensor(drawn.values).masked_fill(value_padding, 0),
        "mb_return": torch.tensor(drawn.returns),
        "mb_advantage": torch.tensor(drawn.advantages).masked_fill(padding, 0),
    }
    losses = excerpt(TRAIN, "logits = output.logits[:, context_length - 1 : -1]", "loss = pg_loss + args.vf_coef")
    found = losses(**names)
    found["loss"].backward()
    sums = {
        "ppo_epoch_idx": 0,
        "minibatch_idx": 0,
        "gradient_accumulation_idx": 0,
        "approxkl_stats": np.zeros((1, 1, 1)),
    }
    metrics = excerpt(TRAIN, "pg_clipfrac = masked_mean(", "approxkl = 0.5 * (logprobs_diff**2).mean()")
    with torch.no_grad():
        found = metrics(**found, **sums)
    return found, logits.grad.numpy(), values.grad.numpy()


def our_update(drawn, value_mask):
    cut = slice(CONTEXT - 1, -1)

    def loss(logits, values):
        logp, entropy = token_logp(lambda x: x, logits[:, cut], jnp.asarray(drawn.tokens), 0.7 + 1e-7)
        token_loss, policy_aux = clipped_surrogate(
            logp, drawn.logp, drawn.advantages, drawn.mask, clip_low=0.2, clip_high=0.2
        )
        policy, n = jnp.sum(token_loss), drawn.mask.sum()
        old = np.where(value_mask, drawn.values, 0.0)
        value, m, value_aux = clipped_value_loss(values[:, cut], old, drawn.returns, value_mask, clip=0.2)
        aux = {"entropy": entropy, "policy": policy_aux, "value": value_aux, "n": n, "m": m}
        return policy / n + 0.5 * value / m, aux | {"policy_loss": policy / n, "value_loss": value / m}

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(jnp.asarray(drawn.logits), jnp.asarray(drawn.values_new))


@pytest.mark.parametrize("slot_after_the_end", [True, False])
def test_losses_and_gradients_of_an_update_equal_trl(drawn, slot_after_the_end):
    """TRL also trains the value of the slot after the end; given that mask, gptjax's value loss is the same."""
    value_mask = drawn.longer if slot_after_the_end else drawn.mask
    theirs, logits_grad, values_grad = trl_update(drawn, value_mask)
    (loss, aux), (ours_logits, ours_values) = our_update(drawn, value_mask)
    for name, value in [("pg_loss", aux["policy_loss"]), ("vf_loss", aux["value_loss"]), ("loss", loss)]:
        np.testing.assert_allclose(value, float(theirs[name].detach()), **CLOSE)
    np.testing.assert_allclose(ours_logits, logits_grad, **CLOSE)
    np.testing.assert_allclose(ours_values, values_grad, **CLOSE)
    clipped_tokens = aux["policy"]["clipped_low"] + aux["policy"]["clipped_high"]
    clipped = clipped_tokens / aux["n"], aux["value"]["clipped"] / aux["m"]
    np.testing.assert_allclose(clipped, [float(theirs["pg_clipfrac"]), float(theirs["vf_clipfrac"])], rtol=1e-6)
    assert 0 < clipped[0] < 1
    assert 0 < clipped[1] < 1


def test_trl_metrics_count_padding_and_gptjax_does_not(drawn):
    theirs, _, _ = trl_update(drawn, drawn.mask)
    (_, aux), _ = our_update(drawn, drawn.mask)
    everything, padding = drawn.mask.size, (~drawn.mask).sum()
    policy = aux["policy"]
    np.testing.assert_allclose(float(theirs["approxkl"].detach()), policy["k2"] / everything, **CLOSE)
    np.testing.assert_allclose(
        float(theirs["ratio"].detach().mean()), (policy["ratio"] + padding) / everything, **CLOSE
    )
    np.testing.assert_allclose(theirs["entropy"].detach().numpy(), aux["entropy"], **CLOSE)
    mean = masked_sum(aux["entropy"], drawn.mask) / aux["n"]
    assert abs(float(theirs["entropy"].detach().mean()) - mean) > 1e-3


def test_selective_log_softmax_and_entropy_equal_trl_at_a_temperature(drawn):
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits, tokens = drawn.logits[:, :RESPONSE], drawn.tokens
    for temperature in (1.0, 0.7):
        logp, entropy = token_logp(lambda x: x, jnp.asarray(logits), jnp.asarray(tokens), temperature)
        theirs = torch.tensor(logits) / temperature
        np.testing.assert_allclose(logp, selective_log_softmax(theirs, torch.tensor(tokens)).numpy(), **CLOSE)
        np.testing.assert_allclose(entropy, entropy_from_logits(theirs).numpy(), **CLOSE)


def test_the_sequence_kl_equals_the_one_that_trl_monitors(drawn):
    """TRL's objective/kl is the batch mean of the sequence sums of k1."""
    padding = torch.tensor(~drawn.mask)
    theirs = excerpt(TRAIN, "logr = ref_logprobs - logprobs", "kl = -logr")(
        args=settings(),
        logprobs=torch.tensor(drawn.logp).masked_fill(padding, INVALID),
        ref_logprobs=torch.tensor(drawn.logp_ref).masked_fill(padding, INVALID),
    )["kl"]
    k1, _, _ = kl_estimates(drawn.logp, drawn.logp_ref, drawn.mask)
    np.testing.assert_allclose(jnp.sum(k1) / ROWS, float(theirs.sum(1).mean()), **CLOSE)
