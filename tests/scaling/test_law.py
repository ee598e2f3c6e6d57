"""The law and its optimum by hand, and by searching."""

import numpy as np
import pytest
from synthetic import LAW

from gptjax.scaling.law import Law


def test_a_loss_and_an_optimum_by_hand():
    # E 1, 8 / 16^.5 = 2, 27 / 27^(1/3) = 9
    law = Law(E=1.0, A=8.0, alpha=0.5, B=27.0, beta=1 / 3)
    assert law.loss(16.0, 27.0) == pytest.approx(12.0)
    # equal terms and exponents: N* = D*, and 6 N D = 600 makes both 10
    n, d = Law(E=0.0, A=1.0, alpha=0.5, B=1.0, beta=0.5).optimum(600.0)
    assert (n, d) == (pytest.approx(10.0), pytest.approx(10.0))


def test_the_optimum_is_the_lowest_loss_on_its_isoflop():
    n, d = LAW.optimum(1e21, 7.0)
    assert 7.0 * n * d == pytest.approx(1e21)
    others = n * np.geomspace(0.5, 2, 101)
    losses = LAW.loss(others, 1e21 / 7.0 / others)
    assert losses.argmin() == 50


def test_the_optimum_grows_with_the_size_exponent():
    # a = beta / (alpha + beta) = .28 / .62
    (n1, _), (n2, _) = LAW.optimum(1e20), LAW.optimum(1e22)
    assert np.log(n2 / n1) / np.log(100) == pytest.approx(0.28 / 0.62)
    assert LAW.size_exponent == pytest.approx(0.28 / 0.62)


def test_tokens_for_a_loss_invert_it_and_are_infinite_out_of_reach():
    assert LAW.tokens_for(1e9, LAW.loss(1e9, 3e10)) == pytest.approx(3e10)
    assert LAW.tokens_for(1e6, LAW.loss(1e9, 3e10)) == np.inf  # 1e6 parameters stay above it with any data


def test_many_laws_at_once_are_each_law_alone():
    laws = Law.of(np.stack([LAW.array, LAW.array * 1.1]))
    np.testing.assert_allclose(laws.loss(1e9, 1e10)[0], LAW.loss(1e9, 1e10))
    np.testing.assert_allclose(laws.optimum(1e20)[0][1], Law.of(LAW.array * 1.1).optimum(1e20)[0])
