"""Held-out loss as ratios of sums, and answers put together from ragged batches."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax.eval.answers import answers, repeated
from gptjax.eval.intervals import clustered_mean
from gptjax.eval.perplexity import heldout_loss
from gptjax.losses.cross_entropy import nll_sums
from gptjax.types import LmBatch, PromptBatch

LM1 = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())["cases"]["LM1_shift_and_mask"]
BYTES = np.array([3, 1, 2, 4], np.int32)  # of tokens 0 to 3; 0 is the padding too


def heldout(batch_size):
    """LM1 as held-out rows; the "model" knows each row's logits by its number."""
    tokens, logits_BTV = np.array(LM1["inputs"]["tokens"]), np.array(LM1["inputs"]["logits"], np.float32)
    numbers = np.repeat(np.arange(2, dtype=np.int32)[:, None], 4, axis=1)
    rows = LmBatch(
        tokens_BT=numbers,
        targets_BT=tokens[:, 1:].astype(np.int32),
        segments_BT=np.ones((2, 4), np.int32),
        positions_BT=numbers,
        weights_BT=np.array(LM1["expected"]["target_weights"], np.float32),
    )

    def sums(batch):
        return nll_sums(logits_BTV[batch.tokens_BT[:, 0], :-1], batch.targets_BT, batch.weights_BT)

    return heldout_loss(sums, rows, batch_size, lambda batch: batch, BYTES)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_heldout_loss_is_a_ratio_of_sums_whatever_the_batches(batch_size):
    # targets 3, 2 and 1, 0, 3, 1: 4 + 2 + 1 + 3 + 4 + 1 = 15 bytes; bits = nats / ln 2
    expected, found = LM1["expected"], heldout(batch_size)
    np.testing.assert_allclose(found["nats_per_token"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["perplexity"], expected["perplexity"], rtol=1e-6)
    np.testing.assert_allclose(found["accuracy"], expected["accuracy"], rtol=1e-6)
    np.testing.assert_allclose(found["bits_per_byte"], expected["nll_sum"] / math.log(2) / 15, rtol=1e-6)
    assert abs(found["nats_per_token"] - expected["WRONG_loss_if_mean_of_row_means"]) > 0.01


def test_answers_come_in_order_without_those_of_filler_rows():
    # 3 prompts in batches of 2: the answer to prompt p is its length, twice, then the end token if the length is odd
    prompts = PromptBatch(tokens_BP=np.zeros((3, 4), np.int32), lengths_B=np.array([3, 2, 1], np.int32))
    seen = []

    def sample(batch, key):
        seen.append(jax.random.key_data(key).tolist())
        tokens_BR = np.stack([batch.lengths_B, batch.lengths_B, np.full(2, 9)], axis=1)
        mask_BR = np.stack([np.ones(2), np.ones(2), batch.lengths_B % 2], axis=1).astype(bool)
        return tokens_BR, mask_BR

    found = answers(
        sample,
        prompts,
        jax.random.key(0),
        batch_size=2,
        put=lambda batch: batch,
        decode=lambda ids: "".join(map(str, ids)),
        end_id=9,
    )
    assert [(answer.text, answer.ended) for answer in found] == [("33", True), ("22", False), ("11", True)]
    assert found[0].tokens == (3, 3, 9)
    assert len(seen) == 2
    assert seen[0] != seen[1]


def test_each_prompt_is_repeated_in_a_row():
    prompts = PromptBatch(tokens_BP=np.array([[1], [2]]), lengths_B=np.array([5, 6]))
    twice = repeated(prompts, 2)
    assert twice.tokens_BP.ravel().tolist() == [1, 1, 2, 2]
    assert twice.lengths_B.tolist() == [5, 5, 6, 6]


def test_the_interval_covers_the_truth_in_95_of_100_runs():
    # 2,000 runs of 60 prompts with 4 observations each that share their prompt's effect; truth 0.
    # 60 clusters and the normal quantile: about 94.5 %.  Observations taken for independent would cover about 65 %.
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(2000, 60, 1)) + 0.3 * rng.normal(size=(2000, 60, 4))
    inside = [low <= 0.0 <= high for _, low, high in map(clustered_mean, runs)]
    naive = [abs(run.mean()) <= 1.96 * run.std(ddof=1) / math.sqrt(run.size) for run in runs]
    assert 0.93 <= np.mean(inside) <= 0.97
    assert np.mean(naive) < 0.8


def test_a_wider_interval_is_asked_for_by_its_half_width():
    values_BN = np.array([[0.0], [2.0]])  # mean 1, deviation sqrt 2, standard error 1
    np.testing.assert_allclose(clustered_mean(values_BN, z=3.0), (1.0, -2.0, 4.0))
