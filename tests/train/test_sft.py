"""Supervised fine-tuning: the two reductions, and a model that learns when to stop."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tables import bigram

from gptjax.data.conversations import pack_conversations, render_prompt
from gptjax.data.packing import pack, weighted_by_segment
from gptjax.generate.engine import SamplingConfig, generate
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model
from gptjax.run.mesh import put
from gptjax.train.sft import sft_step
from gptjax.train.update import initial_state
from gptjax.types import PromptBatch


@pytest.mark.parametrize(("reduction", "wanted", "other"), [("token", 2.75, 2.5625), ("example", 2.5625, 2.75)])
def test_the_mean_over_tokens_is_not_the_mean_over_conversations(dtype, one_device, reduction, wanted, other):
    # token t is followed by t + 1 at a cost of 2, 3, 3.5, 4 nats in one conversation and 1.5, 2.5 in the other:
    # 16.5 / 6 = 2.75, and (12.5 / 4 + 4 / 2) / 2 = 2.5625
    costs = {0: 2.0, 1: 3.0, 2: 3.5, 3: 4.0, 5: 1.5, 6: 2.5}
    p = np.full((8, 8), 1 / 8)
    for token, cost in costs.items():
        p[token] = (1 - np.exp(-cost)) / 7
        p[token, token + 1] = np.exp(-cost)
    rows, _ = pack([[0, 1, 2, 3, 4], [5, 6, 7]], 8)
    if reduction == "example":
        rows = weighted_by_segment(rows)
    sgd = optax.sgd(1.0)
    state = initial_state({"table": jnp.asarray(np.log(p), dtype)}, sgd, jax.random.key(0))
    _, metrics = jax.jit(partial(sft_step, model=bigram(8), optimizer=sgd))(state, put(rows, one_device))
    assert float(metrics["sft/nats_per_token"]) == pytest.approx(wanted, rel=1e-6)
    assert abs(float(metrics["sft/nats_per_token"]) - other) > 0.1


def test_after_overfitting_one_conversation_greedy_decoding_stops_where_the_assistant_did(one_device):
    # padding is the end-of-turn token, as in the many reports of models that never stop
    names = {"pad_id": 6, "bos_id": 1, "system_id": 2, "user_id": 3, "assistant_id": 5, "end_id": 6}
    tokenizer = SimpleNamespace(encode=lambda text: [int(word) for word in text.split()], **names)
    roles = ("user", "7 8"), ("assistant", "9 10 11"), ("user", "12"), ("assistant", "13")
    conversation = [{"role": role, "content": content} for role, content in roles]
    rows, _ = pack_conversations([conversation], tokenizer, 20)
    model, adam = (
        language_model(ModelConfig(vocab_size=16, layers=1, width=16, heads=2, max_length=32)),
        optax.adam(0.02),
    )
    state = jax.jit(lambda key: initial_state(model.init(key), adam, key))(jax.random.key(0))
    step = jax.jit(partial(sft_step, model=model, optimizer=adam))
    batch = put(rows, one_device)
    for _ in range(60):
        state, metrics = step(state, batch)
    assert float(metrics["sft/nats_per_token"]) < 0.1

    answer = jax.jit(
        lambda params, prompts: generate(
            model, params, {}, prompts, jax.random.key(1), end_id=6,
            sampling=SamplingConfig(max_new_tokens=8, temperature=0.0),
        )
    )  # fmt: skip
    prompts = [render_prompt(conversation[:turns], tokenizer) for turns in (1, 3)]
    tokens_BP = np.array([[6] * (14 - len(ids)) + ids for ids in prompts], np.int32)
    lengths_B = np.array([len(ids) for ids in prompts], np.int32)
    tokens_BR, mask_BR, _ = answer(state.params, put(PromptBatch(tokens_BP=tokens_BP, lengths_B=lengths_B), one_device))
    said = [tokens[mask].tolist() for tokens, mask in zip(np.asarray(tokens_BR), np.asarray(mask_BR), strict=True)]
    assert said == [[9, 10, 11, 6], [13, 6]]
