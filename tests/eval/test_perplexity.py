"""Held-out loss as ratios of sums, and prompts of which each is kept once."""

import math

import jax
import numpy as np
import pytest
from golden_cases import GOLDEN

from gptjax.eval.answers import distinct, repeated
from gptjax.eval.intervals import clustered_mean
from gptjax.eval.perplexity import heldout_loss
from gptjax.losses.cross_entropy import NllSums, nll_sums
from gptjax.types import LmBatch, PromptBatch

LM1 = GOLDEN["LM1_shift_and_mask"]
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


def rows_of(targets_BT, weights_BT):
    targets_BT = np.array(targets_BT, np.int32)
    return LmBatch(
        tokens_BT=targets_BT,
        targets_BT=targets_BT,
        segments_BT=np.ones_like(targets_BT),
        positions_BT=np.zeros_like(targets_BT),
        weights_BT=np.array(weights_BT, np.float32),
    )


def costs(nll_V):
    """The sums of a "model" in which each token costs the same everywhere; its z is enormous."""

    def sums(batch):
        nll = float((batch.weights_BT * np.array(nll_V)[batch.targets_BT]).sum())
        weight = float(batch.weights_BT.sum())
        return NllSums(*map(np.float32, (nll, weight, 1e9, 0.0)))

    return sums


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_nats_and_bits_are_ratios_of_sums_over_ragged_rows(batch_size):
    # LM4: tokens cost 1.5, 1 and 1.5 nats and have 2.5 (2 and 3), 4 and 2 bytes.
    # rows of 4 x 1.5, 2 x 1, 2 x 1.5: 11 nats / 8 tokens = 1.375; mean of row means 4 / 3; 11 nats / 22 bytes = 1/2 nat
    nll_V, bytes_V = [9.0, 1.5, 1.5, 1.0, 1.5], np.array([0, 2, 3, 4, 2], np.int32)
    rows = rows_of([[1, 2, 1, 2], [3, 3, 0, 0], [4, 4, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
    found = heldout_loss(costs(nll_V), rows, batch_size, lambda batch: batch, bytes_V)
    assert found["nats_per_token"] == pytest.approx(1.375)
    assert abs(found["nats_per_token"] - 4 / 3) > 0.01
    assert found["bits_per_byte"] == pytest.approx(0.721348, rel=1e-6)
    assert abs(found["bits_per_byte"] - (6 / 10 + 2 / 8 + 3 / 4) / 3 / math.log(2)) > 0.01  # mean of the rows' own


def test_special_targets_count_as_tokens_but_neither_as_bits_nor_as_bytes():
    # 1.5 + 1.5 nats of text over 2 + 3 bytes; a special target of 9 nats beside them: (3 + 9) / 3 nats per token
    rows = rows_of([[1, 2, 0]], [[1, 1, 1]])
    found = heldout_loss(costs([9.0, 1.5, 1.5]), rows, 2, lambda batch: batch, np.array([0, 2, 3], np.int32))
    assert found["nats_per_token"] == pytest.approx(4.0)
    assert found["bits_per_byte"] == pytest.approx(3 / (5 * math.log(2)))
    assert "bits_per_byte" not in heldout_loss(costs([9.0, 1.5, 1.5]), rows, 2, lambda batch: batch)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_perplexity_leaves_the_z_loss_out(dtype):
    case = GOLDEN["LM3_z_loss"]
    with jax.enable_x64(dtype == "float64"):
        logits_BTV = np.array([case["inputs"]["logits"]], dtype)
        found = heldout_loss(
            lambda batch: nll_sums(jax.numpy.asarray(logits_BTV), batch.targets_BT, batch.weights_BT),
            rows_of([case["inputs"]["targets"]], [[1, 1]]),
            1,
            lambda batch: batch,
        )
    assert found["nats_per_token"] == pytest.approx(case["expected"]["eval_loss_must_exclude_z"], rel=1e-6)
    assert found["perplexity"] == pytest.approx(case["expected"]["perplexity"], rel=1e-6)
    assert abs(found["perplexity"] - case["expected"]["WRONG_perplexity_if_z_kept"]) > 0.01


def test_a_run_of_equal_prompts_is_kept_once():
    # 8 rows of prompts 5 5 5 6 6 5 5 5: three runs, which need 4 places; a mesh that spreads 8 rows needs all 8
    tokens_BP = np.array([[5], [5], [5], [6], [6], [5], [5], [5]])
    prompts = PromptBatch(tokens_BP=tokens_BP, lengths_B=np.ones(8, np.int32))
    kept, index_B = distinct(prompts)
    assert kept.tokens_BP.ravel().tolist() == [5, 6, 5, 5]
    assert index_B.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    kept, index_B = distinct(prompts, 8)
    assert len(kept.lengths_B) == 8
    np.testing.assert_array_equal(kept.tokens_BP[index_B], tokens_BP)


def test_prompts_of_different_length_are_kept_apart():
    prompts = PromptBatch(tokens_BP=np.zeros((2, 4), np.int32), lengths_B=np.array([1, 2], np.int32))
    kept, index_B = distinct(prompts)
    assert kept.lengths_B[index_B].tolist() == [1, 2]


def test_each_prompt_is_repeated_in_a_row():
    prompts = PromptBatch(tokens_BP=np.array([[1], [2]]), lengths_B=np.array([5, 6]))
    twice = repeated(prompts, 2)
    assert twice.tokens_BP.ravel().tolist() == [1, 1, 2, 2]
    assert twice.lengths_B.tolist() == [5, 5, 6, 6]
    assert repeated(prompts, np.array([1, 3])).lengths_B.tolist() == [5, 6, 6, 6]


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
