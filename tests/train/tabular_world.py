"""A world small enough to solve exactly: 4 prompts, 40 responses to each, and models that are tables.

Vocabulary {0, 1, 2, END = 3}, prompts 0..3, responses of at most 3 tokens. A state is a prompt and the tokens since;
policy and reference are tables of logits, one row per state, and the reward model is a table of exact rewards. The
optimum of E[r] - beta KL is known, and so are E[r] and KL of any table.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import dims
from gptjax.model_types import Cache, Model, ScalarModel
from gptjax.types import PpoBatch, PreferenceBatch, PromptBatch

END, PROMPTS, LONGEST = 3, 4, 3
PREFIXES = [p for length in range(LONGEST + 1) for p in itertools.product(range(3), repeat=length)]  # 1 + 3 + 9 + 27
STATES = sum(len(p) < LONGEST for p in PREFIXES)  # 13: those in which a token is chosen
RESPONSES = [(*p, END) for p in PREFIXES if len(p) < LONGEST] + [p for p in PREFIXES if len(p) == LONGEST]  # 40
NODES = [*PREFIXES, *RESPONSES[:STATES]]  # all that a row can have shown after its prompt: 53
PLACE = {node: place for place, node in enumerate(NODES)}
BETA = 0.2


def _child(node: tuple[int, ...], token: int) -> int:
    """The node after one more token; where nothing may follow, the node itself stays."""
    return PLACE.get((*node, token), PLACE[node])


CHILD = np.array([[_child(node, token) for token in range(4)] for node in NODES], np.int32)
STATE_OF = np.array([PLACE[tuple(t for t in node if t != END)[: LONGEST - 1]] for node in NODES], np.int32)


def reward(prompt: int, response: tuple[int, ...]) -> float:
    """Tokens equal to the prompt mod 3, minus a quarter per token, minus 1 without an end."""
    content = [token for token in response if token != END]
    return content.count(prompt % 3) - 0.25 * len(content) - (response[-1] != END)


def strength(prompt: int, response: tuple[int, ...]) -> int:
    """How much a response is liked: of two, i is chosen with probability s_i / (s_i + s_j), so its reward is log s."""
    return 1 + response.count(prompt % 3)


REWARDS_BC = np.array([[reward(p, r) for r in RESPONSES] for p in range(PROMPTS)])
REFERENCE = np.random.default_rng(99).normal(0, 0.7, (PROMPTS * STATES, 4))


class Figures(NamedTuple):
    """Exact, averaged over prompts: reward, KL from the reference, their objective, gap closed (1: the optimum's)."""

    reward: float
    kl: float
    objective: float
    gap: float


def response_logp(table: np.ndarray) -> np.ndarray:
    """f64[4, 40], log-probability of each response to each prompt."""
    table = np.asarray(table, np.float64).reshape(PROMPTS, STATES, 4)
    logp = table - np.log(np.exp(table - table.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logp -= table.max(-1, keepdims=True)
    steps = [[(PLACE[r[:t]], token) for t, token in enumerate(r)] for r in RESPONSES]
    return np.array([[sum(logp[p, state, token] for state, token in path) for path in steps] for p in range(PROMPTS)])


def _value(logp_BC: np.ndarray) -> tuple[float, float]:
    p_BC = np.exp(logp_BC)
    return float((p_BC * REWARDS_BC).sum(1).mean()), float((p_BC * (logp_BC - REFERENCE_BC)).sum(1).mean())


REFERENCE_BC = response_logp(REFERENCE)
_UNNORMALISED = REFERENCE_BC + REWARDS_BC / BETA
OPTIMUM_BC = _UNNORMALISED - np.log(np.exp(_UNNORMALISED).sum(1, keepdims=True))  # pi* = ref exp(r / beta) / Z
BEST_REWARD, BEST_KL = _value(OPTIMUM_BC)
BEST = BEST_REWARD - BETA * BEST_KL
FIRST = _value(REFERENCE_BC)[0]


def figures(table: np.ndarray) -> Figures:
    """What a policy is worth, exactly."""
    mean, kl = _value(response_logp(table))
    objective = mean - BETA * kl
    return Figures(mean, kl, objective, (objective - FIRST) / (BEST - FIRST))


def accepted(found: Figures) -> bool:
    """The rule: at the optimum, in objective, KL and reward."""
    return found.gap >= 0.99 and abs(found.kl - BEST_KL) <= 0.1 and abs(found.reward - BEST_REWARD) <= 0.03


def _at(table: Any, index: jax.Array) -> jax.Array:
    """Entries (rows) of a table, spread over the mesh as their index is."""
    table = jnp.asarray(table)
    spec = jax.sharding.PartitionSpec(*jax.typeof(index).sharding.spec, *(None,) * (table.ndim - 1))
    return table.at[index].get(out_sharding=spec)


def _nodes(tokens_BT: jax.Array) -> jax.Array:
    """i32[B, T], the place (prompt x 53 + node) of each row after each of its tokens; column 0 is the prompt."""
    tokens_BT = jax.sharding.reshard(tokens_BT, dims.act_spec("BT", decoding=True))
    places = [tokens_BT[:, 0] * len(NODES)]
    for t in range(1, tokens_BT.shape[1]):
        places.append(_moved(places[-1], tokens_BT[:, t]))
    return jnp.stack(places, axis=1)


def _moved(here_B: jax.Array, token_B: jax.Array) -> jax.Array:
    return here_B - here_B % len(NODES) + _at(CHILD.ravel(), here_B % len(NODES) * 4 + token_B)


def _row(place: jax.Array) -> jax.Array:
    """The row of a table of states that a place reads."""
    return place // len(NODES) * STATES + _at(STATE_OF, place % len(NODES))


def table_model() -> Model:
    """A language model whose hidden states are rows of a table of logits; its cache holds the place of each row."""

    def hidden(params, frozen, tokens_BT, segments_BT, positions_BT, *, causal=True, key=None):
        return _at(params["table"], _row(_nodes(tokens_BT))), None

    def prefill(params, frozen, tokens_BT, segments_BT, positions_BT, *, slots):
        places_BT = _nodes(tokens_BT)
        return Cache(k_BKSH=places_BT[:, -1], v_BKSH=jnp.zeros(())), _at(params["table"], _row(places_BT))

    def decode(params, frozen, cache, token_BT, segments_BS, positions_BT, index):
        here_B = _moved(cache.k_BKSH, token_BT[:, 0])
        return Cache(k_BKSH=here_B, v_BKSH=cache.v_BKSH), _at(params["table"], _row(here_B))[:, None]

    return Model(
        init=lambda key: {"table": jnp.asarray(REFERENCE, jnp.float32)},
        hidden=hidden,
        unembed=lambda params, frozen, h_BTD, *, decoding=False: h_BTD,
        prefill=prefill,
        decode=decode,
        gather=lambda params: params,
        roles={"table": "matrix"},
        letters={"table": "1V"},
    )


def scalar_tables() -> ScalarModel:
    """Values: a table over states.  Rewards: a table over places, so that the end token has a score of its own."""

    def values(params, frozen, tokens_BT, segments_BT, positions_BT):
        places_BT = _nodes(tokens_BT)
        by_place = "reward" in params
        return (_at(params["reward"], places_BT) if by_place else _at(params["value"], _row(places_BT))), None

    return ScalarModel(
        init=lambda key: {"value": jnp.zeros(PROMPTS * STATES)},
        values=values,
        roles={"value": "matrix"},
        letters={"value": "1"},
    )


def frozen_models() -> dict[str, Any]:
    """Reference and exact reward."""
    scores = np.zeros((PROMPTS, len(NODES)), np.float32)
    for place, response in enumerate(RESPONSES):
        scores[:, PLACE[response]] = REWARDS_BC[:, place]
    return {
        "reference": {"table": jnp.asarray(REFERENCE, jnp.float32)},
        "reward": {"reward": jnp.asarray(scores.reshape(-1))},
        "reward_gain": jnp.float32(1.0),
        "reward_bias": jnp.float32(0.0),
    }


def prompts(count: int) -> PpoBatch:
    """So many prompts, each of the four equally often."""
    tokens_BP = np.arange(count, dtype=np.int32)[:, None] % PROMPTS
    return PpoBatch(prompts=PromptBatch(tokens_BP=tokens_BP, lengths_B=np.ones(count, np.int32)))


def preferred_pairs() -> PreferenceBatch:
    """Each response to each prompt against the four after it, either one chosen as often as Bradley and Terry say.

    Strengths are small whole numbers, so the population is finite: pair (i, j) occurs s_i times with i chosen and s_j
    times with j chosen, over their greatest common divisor. The pairs connect all responses, which fixes the optimum.
    """
    rows, prompt_B = [], []
    for prompt, i, step in itertools.product(range(PROMPTS), range(len(RESPONSES)), range(1, 5)):
        j = (i + step) % len(RESPONSES)
        own, other = (strength(prompt, RESPONSES[c]) for c in (i, j))
        shared = math.gcd(own, other)
        rows += [(i, j)] * (own // shared) + [(j, i)] * (other // shared)
        prompt_B += [prompt] * ((own + other) // shared)
    padded = np.array([(*r, *(0,) * (LONGEST - len(r))) for r in RESPONSES], np.int32)
    pairs_BC, prompt_B = np.array(rows), np.array(prompt_B, np.int32)
    first_BC1 = np.broadcast_to(prompt_B[:, None, None], (*pairs_BC.shape, 1))
    tokens_BCT = np.concatenate([first_BC1, padded[pairs_BC]], axis=2)
    return PreferenceBatch(
        tokens_BCT=tokens_BCT,
        targets_BCT=np.concatenate([tokens_BCT[:, :, 1:], np.zeros_like(tokens_BCT[:, :, :1])], axis=2),
        lengths_BC=np.array([1 + len(r) for r in RESPONSES], np.int32)[pairs_BC],
        prompt_lengths_B=np.ones_like(prompt_B),
        logp_ref_BC=REFERENCE_BC[prompt_B[:, None], pairs_BC].astype(np.float32),
    )


def preferred_gap(table: np.ndarray) -> float:
    """Largest distance, over all responses, of the log-probability from DPO's closed form ref exp(r) / Z (nats)."""
    strengths_BC = np.array([[strength(prompt, r) for r in RESPONSES] for prompt in range(PROMPTS)])
    optimum_BC = REFERENCE_BC + np.log(strengths_BC)
    optimum_BC -= np.log(np.exp(optimum_BC).sum(1, keepdims=True))
    return float(np.abs(response_logp(table) - optimum_BC).max())
