"""Whole forward passes and updates against transformers and TRL: the same GPT-2 weights on both sides, in float64."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.data.candidates import packed
from gptjax.generate.engine import SamplingConfig, generate
from gptjax.model.pure import language_model, scalar_model
from gptjax.run.mesh import put
from gptjax.train.ppo import initial_extra, ppo_step
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.response import response_logp, response_values
from gptjax.train.reward import reward_step
from gptjax.train.rollout import full_rows, last_score
from gptjax.train.update import initial_state
from gptjax.types import PromptBatch, RewardBatch, Rollout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
ppo_trainer = pytest.importorskip("trl.experimental.ppo.ppo_trainer")
reward_trainer = pytest.importorskip("trl.trainer.reward_trainer")
gpt2 = pytest.importorskip("gpt2")
excerpt = pytest.importorskip("excerpt").excerpt

pytestmark = pytest.mark.usefixtures("x64", "one_device")
PAD, VOCABULARY, PROMPT, RESPONSE = 31, 32, 4, 6  # no row holds the last token of the vocabulary but as padding
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture
def models():
    """A policy and a scalar model of transformers, and gptjax's records with the same weights."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_layer=2, n_embd=16, n_head=2, n_positions=PROMPT + RESPONSE, num_labels=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3,
        pad_token_id=PAD, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    policy = transformers.GPT2LMHeadModel(config).double().train()
    scalar = transformers.GPT2ForSequenceClassification(config).double().train()
    with torch.no_grad():
        for name, parameter in [*policy.named_parameters(), *scalar.named_parameters()]:
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    ours = gpt2.gpt2_config(config)
    return SimpleNamespace(
        policy=policy,
        scalar=scalar,
        model=language_model(ours),
        scalar_model=scalar_model(ours),
        params={"policy": gpt2.trunk(policy.transformer), "value": gpt2.scalar(scalar)},
    )


@pytest.fixture
def rows():
    """Left-padded prompts with responses of different lengths, as both sides lay them out."""
    rng = np.random.default_rng(1)
    prompt_lengths, lengths = np.array([4, 2, 3, 1]), np.array([6, 3, 1, 5])
    mask = np.arange(RESPONSE) < lengths[:, None]
    prompts = rng.integers(0, PAD, (4, PROMPT))
    tokens = np.where(mask, rng.integers(0, PAD, mask.shape), 0)
    batch = PromptBatch(tokens_BP=jnp.asarray(prompts, jnp.int32), lengths_B=jnp.asarray(prompt_lengths, jnp.int32))
    names = ("tokens_BT", "segments_BT", "positions_BT")
    ours = dict(zip(names, full_rows(batch, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)), strict=True))
    is_pad = np.arange(PROMPT) < PROMPT - prompt_lengths[:, None]
    theirs = np.concatenate([np.where(is_pad, PAD, prompts), np.where(mask, tokens, PAD)], axis=1)
    return SimpleNamespace(ours=ours, theirs=torch.tensor(theirs), mask=mask, lengths=lengths)


def test_log_probabilities_and_values_of_responses_equal_those_of_gpt2(models, rows):
    logp, entropy, _ = response_logp(
        models.model, params=models.params["policy"], frozen={}, rows=rows.ours, responses=RESPONSE, temperature=0.7
    )
    values, _ = response_values(models.scalar_model, models.params["value"], {}, rows.ours, RESPONSE)
    with torch.no_grad():
        logits = ppo_trainer.forward(models.policy, rows.theirs, PAD).logits[:, PROMPT - 1 : -1] / 0.7
        theirs = torch.distributions.Categorical(logits=logits)
        expected = theirs.log_prob(rows.theirs[:, PROMPT:].clamp(max=VOCABULARY - 1))
        expected_values = ppo_trainer.get_reward(models.scalar, rows.theirs, PAD, PROMPT)[0][:, PROMPT - 1 : -1, 0]
    np.testing.assert_allclose(np.asarray(logp)[rows.mask], expected.numpy()[rows.mask], **CLOSE)
    np.testing.assert_allclose(np.asarray(entropy)[rows.mask], theirs.entropy().numpy()[rows.mask], **CLOSE)
    np.testing.assert_allclose(np.asarray(values)[rows.mask], expected_values.numpy()[rows.mask], **CLOSE)


def test_the_score_is_taken_where_trl_takes_it(models, rows):
    with torch.no_grad():
        _, expected, last = ppo_trainer.get_reward(models.scalar, rows.theirs, PAD, PROMPT)
    assert np.array_equal(last.numpy(), PROMPT + rows.lengths - 1)
    scores = last_score(models.scalar_model, models.params["value"], {}, rows.ours)
    np.testing.assert_allclose(scores, expected.numpy(), **CLOSE)


def test_the_mask_of_a_sampled_response_ends_where_trl_cuts_it(models):
    """Up to and including the first stop token, whatever comes after it; everything if there is none."""
    rng = np.random.default_rng(4)
    prompts = PromptBatch(
        tokens_BP=jnp.asarray(rng.integers(0, PAD, (16, PROMPT)), jnp.int32),
        lengths_B=jnp.full((16,), PROMPT, jnp.int32),
    )
    sampling = SamplingConfig(max_new_tokens=RESPONSE)
    draw = partial(generate, models.model, models.params["policy"], {}, prompts, jax.random.key(0), sampling=sampling)
    free, *_ = draw(end_id=-1)
    stop, beyond = np.bincount(np.ravel(free)).argmax(), VOCABULARY  # TRL pads with a token that cannot be sampled
    tokens, mask = (np.array(x) for x in draw(end_id=int(stop))[:2])
    responses = torch.tensor(np.where(mask, tokens, rng.integers(0, PAD, mask.shape)))  # TRL goes on sampling
    cut = ppo_trainer.truncate_response(stop, beyond, responses)
    lengths = ppo_trainer.first_true_indices(cut == beyond).numpy()
    assert 1 <= lengths.min() < lengths.max() == RESPONSE
    assert np.array_equal(mask.sum(axis=1), lengths)
    assert np.array_equal(mask, (cut != beyond).numpy())


def test_one_update_of_policy_and_value_equals_trl(models, one_device):
    """One minibatch, SGD with rate 1: parameters move by TRL's gradients; see below for its sample variance."""
    rng = np.random.default_rng(2)
    shape, everything = (4, RESPONSE), np.ones((4, RESPONSE), bool)
    tokens = rng.integers(0, PAD, (4, PROMPT + RESPONSE))
    with torch.no_grad():
        logits = ppo_trainer.forward(models.policy, torch.tensor(tokens), PAD).logits[:, PROMPT - 1 : -1]
        logp = torch.log_softmax(logits / 0.7, -1).gather(-1, torch.tensor(tokens[:, PROMPT:, None]))[..., 0].numpy()
        values = ppo_trainer.get_reward(models.scalar, torch.tensor(tokens), PAD, PROMPT)[0][:, PROMPT - 1 : -1, 0]
    drawn = {name: rng.normal(0, 1, shape) for name in ("advantages_BR", "returns_BR")}
    drawn |= {"logp_old_BR": logp + rng.normal(0, 0.3, shape), "values_BR": values.numpy() + rng.normal(0, 0.3, shape)}
    white = ppo_trainer.masked_whiten(torch.tensor(drawn["advantages_BR"]), torch.tensor(everything))
    wrapper = ppo_trainer.PolicyAndValueWrapper(models.policy, models.scalar)
    padding = torch.tensor(~everything)
    update = excerpt(ppo_trainer.PPOTrainer.train, "output, vpred_temp = forward(", "accelerator.backward(loss)")
    update(
        model=wrapper,
        processing_class=SimpleNamespace(pad_token_id=PAD),
        accelerator=SimpleNamespace(backward=lambda loss: loss.backward()),
        args=SimpleNamespace(temperature=0.7 - 1e-7, cliprange=0.2, cliprange_value=0.2, vf_coef=1.0),
        context_length=PROMPT,
        micro_batch_inds=np.arange(4),
        padding_mask=padding,
        padding_mask_p1=padding,
        mb_query_responses=torch.tensor(tokens),
        mb_responses=torch.tensor(tokens[:, PROMPT:]),
        mb_logprobs=torch.tensor(drawn["logp_old_BR"]),
        mb_values=torch.tensor(drawn["values_BR"]),
        mb_return=torch.tensor(drawn["returns_BR"]),
        mb_advantage=white,
    )
    theirs = {"policy": gpt2.trunk(models.policy.transformer, True), "value": gpt2.scalar(models.scalar, True)}
    n = everything.sum()
    # gptjax whitens with the population's variance, TRL with the sample's: its advantages are smaller by this factor
    theirs["policy"] = jax.tree.map(lambda grad: grad * np.sqrt(n / (n - 1)), theirs["policy"])

    rollout = Rollout(
        tokens_BT=tokens.astype(np.int32),
        segments_BT=np.ones(tokens.shape, np.int32),
        positions_BT=np.broadcast_to(np.arange(PROMPT + RESPONSE, dtype=np.int32), tokens.shape),
        mask_BR=everything,
        rewards_BR=np.zeros(shape),
        logp_ref_BR=np.zeros(shape),
        scores_B=np.zeros(4),
        ended_B=np.ones(4, bool),
        **drawn,
    )
    rollout = dataclasses.replace(put(rollout, one_device), version=jnp.zeros((), jnp.int32))
    config = PpoConfig(minibatches=1, epochs=1, response_tokens=RESPONSE, temperature=0.7)
    optimizer = optax.sgd(1.0)
    extra = initial_extra(config, models.params["policy"])
    state = initial_state(models.params, optimizer, jax.random.key(0), **extra)
    step = partial(ppo_step, policy=models.model, scalar=models.scalar_model, optimizer=optimizer, config=config)
    after, metrics = jax.jit(step)(state, rollout)
    assert 0 < metrics["ppo/clip_fraction"] < 1
    assert 0 < metrics["ppo/value_clip_fraction"] < 1
    ours = jax.tree.map(jnp.subtract, models.params, after.params)
    ours["value"]["bias_1"] = jnp.zeros(1)  # TRL's head has none
    assert_trees_close(ours, theirs, rtol=1e-6, atol=1e-8)  # TRL rounds n / (n - 1) to float32


def test_one_reward_update_equals_trl_over_all_pairs_of_a_prompt(models, one_device):
    """gptjax scores each candidate once, TRL once for each pair it is in; loss and update are the same."""
    rng = np.random.default_rng(3)
    candidates, length = 4, PROMPT + RESPONSE
    lengths = np.array([5, 10, 3, 8])
    tokens = rng.integers(0, PAD, (candidates, length))
    ranks = np.array([2, 4, 1, 3])
    pairs = [(i, j) for i in range(candidates) for j in range(candidates) if ranks[i] < ranks[j]]
    examples = [
        {"chosen_ids": list(tokens[i, : lengths[i]]), "rejected_ids": list(tokens[j, : lengths[j]])} for i, j in pairs
    ]
    inputs = reward_trainer.DataCollatorForPreference(PAD)([*examples])
    gathering = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=models.scalar,
        accelerator=gathering,
        args=SimpleNamespace(center_rewards_coefficient=None),
        _total_train_tokens=0,
        _metrics={"train": {name: [] for name in ("min_reward", "mean_reward", "max_reward", "accuracy", "margin")}},
    )
    loss = reward_trainer.RewardTrainer.compute_loss(trainer, models.scalar, inputs)
    loss.backward()
    theirs = gpt2.scalar(models.scalar, True)

    ranked = RewardBatch(tokens_BCT=tokens[None], lengths_BC=lengths[None], ranks_BC=ranks[None])
    batch = put(jax.tree.map(partial(np.asarray, dtype=np.int32), packed(ranked, 2 * length)), one_device)
    optimizer = optax.sgd(1.0)
    state = initial_state(models.params["value"], optimizer, jax.random.key(0))
    after, metrics = jax.jit(partial(reward_step, model=models.scalar_model, optimizer=optimizer))(state, batch)
    np.testing.assert_allclose(metrics["reward/loss_nats"], float(loss.detach()), **CLOSE)
    np.testing.assert_allclose(metrics["reward/accuracy"], trainer._metrics["train"]["accuracy"][0], rtol=1e-6)
    assert metrics["reward/pairs"] == len(pairs) == 6
    ours = jax.tree.map(jnp.subtract, models.params["value"], after.params) | {"bias_1": jnp.zeros(1)}
    assert_trees_close(ours, theirs, **CLOSE)


def assert_trees_close(ours, theirs, **tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path), **tolerance)
