"""PPO, RLOO and DPO in a world with a known optimum: they get there, and with any one of many bugs they do not."""

import numpy as np
import pytest
from tabular import dpo_gap, trained
from tabular_mutants import MUTANTS
from tabular_world import (
    BEST,
    BEST_KL,
    BEST_REWARD,
    FIRST,
    NODES,
    OPTIMUM_BC,
    PROMPTS,
    REFERENCE,
    RESPONSES,
    REWARDS_BC,
    STATES,
    accepted,
    figures,
    preferred_gap,
    preferred_pairs,
    response_logp,
    reward,
    strength,
)  # fmt: skip


def test_the_world_is_the_one_that_was_specified():
    assert (STATES, len(RESPONSES), len(NODES)) == (13, 40, 53)
    found = [BEST, BEST_REWARD, BEST_KL, FIRST]
    np.testing.assert_allclose(found, [0.6551, 1.2872, 3.1607, -0.2160], atol=5e-5)
    # prompt 3 wants token 0 (3 mod 3): two of them and another in three tokens, no end: 2 - .75 - 1
    assert reward(3, (0, 1, 0)) == 0.25
    assert reward(1, (1, 1, 3)) == 1.5


def test_probabilities_of_all_responses_add_up_to_one():
    table = np.random.default_rng(1).normal(size=(PROMPTS * STATES, 4))
    np.testing.assert_allclose(np.exp(response_logp(table)).sum(1), 1.0, atol=1e-12)
    np.testing.assert_allclose(np.exp(OPTIMUM_BC).sum(1), 1.0, atol=1e-12)


def test_no_table_is_better_than_the_optimum():
    rng = np.random.default_rng(0)
    assert all(figures(REFERENCE + rng.normal(size=REFERENCE.shape)).objective < BEST for _ in range(50))
    assert not accepted(figures(REFERENCE))
    assert REWARDS_BC.max() > BEST_REWARD  # the reward alone could still go up


def test_preferences_are_those_of_bradley_and_terry():
    # prompt 1 wants token 1: (1, 1, END) is liked 3 to 1 against (0, END), so it is chosen three times out of four
    assert (strength(1, (1, 1, 3)), strength(1, (0, 3))) == (3, 1)
    pairs = preferred_pairs()
    assert RESPONSES[1:3] == [(0, 3), (1, 3)]  # strengths 1 and 2, next to each other
    wanted = [(1, *response, 0) for response in RESPONSES[1:3]]
    rows = [tuple(map(tuple, row)) for row in pairs.tokens_BCT.tolist()]
    assert (rows.count((wanted[0], wanted[1])), rows.count((wanted[1], wanted[0]))) == (1, 2)
    assert preferred_gap(REFERENCE) > 0.5


@pytest.mark.parametrize(("algorithm", "seeds"), [("PPO", [0, 1]), ("RLOO", [0])])
def test_an_algorithm_reaches_the_optimum(algorithm, seeds):
    assert [found for found in trained(algorithm, seeds) if not accepted(found)] == []


def test_dpo_reaches_its_closed_form():
    assert dpo_gap() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["PPO", "RLOO"])
def test_an_algorithm_reaches_the_optimum_with_every_seed(algorithm):
    assert [found for found in trained(algorithm, range(10)) if not accepted(found)] == []


@pytest.mark.parametrize("mutant", MUTANTS["DPO"].values(), ids=MUTANTS["DPO"])
def test_a_bug_in_dpo_is_seen(mutant):
    with mutant():
        assert dpo_gap() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "mutant"), [(a, m) for a in ("PPO", "RLOO") for m in MUTANTS[a]])
def test_a_bug_is_seen_with_every_seed(algorithm, mutant):
    with MUTANTS[algorithm][mutant]():
        assert [found for found in trained(algorithm, range(5)) if accepted(found)] == []


@pytest.mark.slow
def test_k1_as_a_loss_cannot_be_told_from_no_kl():
    found = []
    for name in ("no KL", "k1 as a loss"):
        with MUTANTS["RLOO"][name]():
            found.append(trained("RLOO", [0])[0])
    assert abs(found[0].kl - found[1].kl) < 0.05
