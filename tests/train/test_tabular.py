"""PPO in a world with a known optimum: it gets there, and with any one of nine bugs it does not."""

import numpy as np
import pytest
from tabular import MUTANTS, mutated, trained
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
    response_logp,
    reward,
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


def test_ppo_reaches_the_optimum():
    assert [found for found in trained("PPO", [0, 1]) if not accepted(found)] == []


@pytest.mark.slow
def test_ppo_reaches_the_optimum_with_every_seed():
    assert [found for found in trained("PPO", range(10)) if not accepted(found)] == []


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_bug_is_seen(mutant):
    assert not accepted(mutated(mutant, [0])[0])


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_bug_is_seen_with_every_seed(mutant):
    assert [found for found in mutated(mutant, range(5)) if accepted(found)] == []
