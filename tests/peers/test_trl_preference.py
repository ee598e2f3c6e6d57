"""DPO and the ranking loss against TRL's own methods on the same random inputs, in float64: values and gradients."""

from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.cross_entropy import row_logp
from gptjax.losses.dpo import dpo_loss
from gptjax.losses.preference import ranking_loss

torch = pytest.importorskip("torch")
dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")
reward_trainer = pytest.importorskip("trl.trainer.reward_trainer")

pytestmark = pytest.mark.usefixtures("x64")
PAIRS, LENGTH, VOCABULARY, BETA = 4, 8, 9, 0.3
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def drawn():
    """Rows of chosen responses, then of rejected ones, as TRL stacks them."""
    rng = np.random.default_rng(0)
    rows = 2 * PAIRS
    first, lengths = rng.integers(1, 4, rows), rng.integers(5, LENGTH + 1, rows)
    index = np.arange(LENGTH)
    return SimpleNamespace(
        logits=rng.normal(0, 1, (rows, LENGTH, VOCABULARY)),
        tokens=rng.integers(0, VOCABULARY, (rows, LENGTH)),
        mask=(index >= first[:, None]) & (index < lengths[:, None]),
        logp_ref=rng.normal(-12, 2, rows),
    )


def trl_loss(drawn, kind, smoothing=0.0, swapped=False):
    """TRL's loss with its gradient in the logits and its metrics; `swapped`: chosen and rejected are exchanged."""
    order = np.roll(np.arange(2 * PAIRS), PAIRS) if swapped else np.arange(2 * PAIRS)
    logits = torch.tensor(drawn.logits, requires_grad=True)
    light = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=smoothing,
        use_weighting=False,
    )
    chosen, rejected = torch.tensor(drawn.logp_ref[order]).chunk(2)
    inputs = {
        "input_ids": torch.tensor(drawn.tokens[order]),
        "attention_mask": torch.ones(drawn.tokens.shape),
        "completion_mask": torch.tensor(drawn.mask[order].astype(int)),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = dpo_trainer.DPOTrainer._compute_loss(light, lambda **_: SimpleNamespace(logits=logits[order]), inputs, False)
    loss.backward()
    metrics = {name: values if name == "num_tokens" else values[0] for name, values in light._metrics["train"].items()}
    return float(loss.detach()), logits.grad.numpy(), metrics


def our_loss(drawn, **settings):
    """gptjax's loss over the pairs, its gradient, and the means of its sums."""

    def pairs(x):
        return jnp.stack([x[:PAIRS], x[PAIRS:]], axis=1)

    def loss_fn(logits):
        targets, mask = jnp.asarray(drawn.tokens[:, 1:]), jnp.asarray(drawn.mask[:, 1:])
        logp = row_logp(lambda x: x, logits[:, :-1], targets, mask)
        counted = jnp.ones(PAIRS, bool)
        loss_sum, n, aux = dpo_loss(pairs(logp), pairs(jnp.asarray(drawn.logp_ref)), counted, beta=BETA, **settings)
        return loss_sum / n, {name: value / n for name, value in aux.items()}

    return jax.value_and_grad(loss_fn, has_aux=True)(jnp.asarray(drawn.logits))


@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("robust", 0.2), ("ipo", 0.0)])
def test_dpo_losses_and_gradients_equal_trl(drawn, kind, smoothing):
    """TRL's IPO averages log-ratios over the tokens of a response, which is an option of gptjax."""
    loss, grad, metrics = trl_loss(drawn, kind, smoothing)
    lengths = None
    if kind == "ipo":
        lengths = jnp.stack([drawn.mask[:PAIRS].sum(axis=1), drawn.mask[PAIRS:].sum(axis=1)], axis=1)
    (value, aux), ours_grad = our_loss(drawn, kind=kind, label_smoothing=smoothing, lengths_BC=lengths)
    np.testing.assert_allclose(value, loss, **CLOSE)
    np.testing.assert_allclose(ours_grad, grad, **CLOSE)
    names = {"logp_chosen": "logps/chosen", "logp_rejected": "logps/rejected"}
    if kind != "ipo":  # whose margins TRL logs without the average
        names |= {"margin": "rewards/margins", "correct": "rewards/accuracies", "reward_chosen": "rewards/chosen"}
    for ours, theirs in names.items():
        np.testing.assert_allclose(aux[ours], metrics[theirs], rtol=1e-6)


def test_cdpo_is_trl_sigmoid_loss_on_pairs_that_are_exchanged_at_the_rate_of_the_smoothing(drawn):
    """TRL 1.12 reads no label smoothing in its sigmoid loss, so its cDPO is put together from two calls."""
    assert trl_loss(drawn, "sigmoid", 0.2)[0] == trl_loss(drawn, "sigmoid", 0.0)[0]
    as_labelled, exchanged = trl_loss(drawn, "sigmoid"), trl_loss(drawn, "sigmoid", swapped=True)
    (value, _), grad = our_loss(drawn, kind="sigmoid", label_smoothing=0.2)
    np.testing.assert_allclose(value, 0.8 * as_labelled[0] + 0.2 * exchanged[0], **CLOSE)
    np.testing.assert_allclose(grad, 0.8 * as_labelled[1] + 0.2 * exchanged[1], **CLOSE)


def trl_ranking(scores, better, margins=None, center=None):
    """TRL's loss on pairs (i, j) of candidates of one prompt, its gradient in the scores, and its accuracy."""
    scores = torch.tensor(scores, requires_grad=True)
    chosen, rejected = (scores[[pair[side] for pair in better]] for side in (0, 1))
    light = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        args=SimpleNamespace(center_rewards_coefficient=center),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {"attention_mask": torch.ones(1)} | ({} if margins is None else {"margin": torch.tensor(margins)})

    def model(**_):
        return SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])

    loss = reward_trainer.RewardTrainer.compute_loss(light, model, inputs)
    loss.backward()
    return float(loss.detach()), scores.grad.numpy(), light._metrics["train"]["accuracy"][0]


@pytest.mark.parametrize(("with_margin", "center"), [(False, 0.0), (True, 0.0), (False, 0.01), (True, 0.01)])
def test_the_ranking_loss_of_a_prompt_equals_trl_over_its_pairs(with_margin, center):
    """Two candidates are tied, so 5 candidates have 9 pairs; the sixth column holds none."""
    rng = np.random.default_rng(0)
    scores, ranks = rng.normal(0, 2, 6), np.array([3, 1, 2, 2, 4, 0])
    better = [(i, j) for i in range(5) for j in range(5) if ranks[i] < ranks[j]]
    margins = rng.uniform(0, 2, (6, 6))
    chosen = [margins[pair] for pair in better]
    theirs, grad, accuracy = trl_ranking(scores, better, chosen if with_margin else None, center or None)
    options = ({"center": center} if center else {}) | ({"margins_BCC": margins[None]} if with_margin else {})

    def loss_fn(scores):
        loss_sum, n, aux = ranking_loss(scores[None], ranks[None], **options)
        return loss_sum / n, aux

    (value, aux), ours_grad = jax.value_and_grad(loss_fn, has_aux=True)(jnp.asarray(scores))
    np.testing.assert_allclose(value, theirs, **CLOSE)
    np.testing.assert_allclose(ours_grad, grad, **CLOSE)
    assert aux["pairs"] == len(better) == 9
    np.testing.assert_allclose(aux["correct"] / 9, accuracy, rtol=1e-6)


def test_prompts_weigh_the_same_where_trl_pools_their_pairs():
    """4 candidates have 6 pairs, 2 have 1: TRL divides by 7, gptjax each prompt by its own number."""
    rng = np.random.default_rng(1)
    scores, ranks = rng.normal(0, 2, (2, 4)), np.array([[2, 1, 4, 3], [1, 2, 0, 0]])
    pairs = [[(i, j) for i in range(4) for j in range(4) if 0 < row[i] < row[j]] for row in ranks]
    each = [trl_ranking(scores[prompt], pairs[prompt])[0] for prompt in (0, 1)]
    pooled, _, _ = trl_ranking(scores.reshape(-1), [*pairs[0], *((4 + i, 4 + j) for i, j in pairs[1])])
    loss_sum, n, _ = ranking_loss(scores, ranks)
    np.testing.assert_allclose(loss_sum / n, (each[0] + each[1]) / 2, **CLOSE)
    np.testing.assert_allclose(pooled, (6 * each[0] + each[1]) / 7, **CLOSE)
    assert abs(loss_sum / n - pooled) > 0.05
