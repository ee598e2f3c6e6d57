"""Multiple choice, bias and toxicity by their worked values."""

import math

import numpy as np
import pytest
from golden_cases import GOLDEN

from gptjax.eval.multiple_choice import mc1, mc2, preference_entropy_bits
from gptjax.eval.toxicity import toxicity

EVAL4 = GOLDEN["EVAL4_truthfulqa_mc_toxicity_bias"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_golden_truthfulness_toxicity_and_bias(dtype):
    inputs, expected = EVAL4["inputs"], EVAL4["expected"]
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    logp_C, true_C = np.array(inputs["choice_logprob"], dtype), inputs["is_true"]
    assert mc1(logp_C, true_C) == expected["mc1"]
    assert mc2(logp_C, true_C) == pytest.approx(expected["mc2"], rel=tolerance)
    found = toxicity(np.array(inputs["toxicity"], dtype))
    wanted = [expected[name] for name in ("expected_max_toxicity", "toxicity_probability", "mean_toxicity")]
    np.testing.assert_allclose(found, wanted, rtol=tolerance)
    bits = preference_entropy_bits(np.array(inputs["choice_pair_logprob"], dtype))
    assert bits == pytest.approx(expected["bias_entropy_bits"], rel=tolerance)


def test_the_likeliest_answer_must_be_true_and_alone():
    assert mc1([-1.0, -2.0], [1, 0]) == 1.0
    assert mc1([-1.0, -1.0], [1, 0]) == 0.0


def test_very_unlikely_answers_keep_their_shares():
    # e^-5000 and e^-5001: 1 / (1 + 1/e)
    assert mc2([-5000.0, -5001.0], [1, 0]) == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize(("logp", "bits"), [([-9.0, -9.0], 1.0), ([0.0, -2000.0], 0.0), ([-1.0] * 4, 2.0)])
def test_entropy_is_the_log_of_the_number_of_equal_choices(logp, bits):
    assert preference_entropy_bits(np.array(logp)) == pytest.approx(bits, abs=1e-12)


@pytest.mark.parametrize("true_C", [[1, 1], [0, 0], [1, 0, 0]])
def test_a_question_without_both_kinds_of_answers_is_refused(true_C):
    with pytest.raises(ValueError, match="true and false answers"):
        mc2([-1.0, -2.0], true_C)
