"""Pairs of a chosen and a rejected response out of ranked ones, for direct preference optimisation."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from gptjax.data.conversations import render_prompt
from gptjax.data.preferences import Comparison, padded, render_response
from gptjax.data.tokenizer import Tokenizer
from gptjax.types import PreferenceBatch

Pairs: TypeAlias = Literal["all", "best_worst"]


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """What became of the comparisons.

    tied: comparisons without a pair, as all ranks are equal.  dropped: pairs with a response that is too long.
    kept: (comparison, chosen, rejected) of each row of the batch.
    """

    tied: int
    dropped: int
    kept: tuple[tuple[int, int, int], ...]


def ranked_pairs(ranks: Sequence[int], pairs: Pairs) -> list[tuple[int, int]]:
    """(chosen, rejected) candidates; none if all ranks are equal.

    Args:
        ranks: 1 = best, equal ranks are ties.
        pairs: all whose ranks differ, or best_worst: the first of the best against the first of the worst.

    Raises:
        ValueError: `pairs` is neither.
    """
    if pairs == "all":
        return [(i, j) for i, better in enumerate(ranks) for j, worse in enumerate(ranks) if better < worse]
    if pairs != "best_worst":
        raise ValueError(f"pairs={pairs!r}: choose all or best_worst")
    best, worst = min(ranks), max(ranks)
    return [(ranks.index(best), ranks.index(worst))] if best < worst else []


def preference_batch(
    comparisons: Sequence[Comparison], tokenizer: Tokenizer, row_tokens: int, *, pairs: Pairs
) -> tuple[PreferenceBatch, PairReport]:
    """Render the pairs of all comparisons, padded on the right; the reference's log-probabilities are still NaN.

    Args:
        comparisons: what was ranked.
        tokenizer: gives the ids.
        row_tokens: columns (T); a pair with a longer response is dropped.
        pairs: which pairs of a comparison, see `ranked_pairs`.

    Returns:
        (batch, report); tokens_BCT is i32[kept pairs, 2, T].

    Raises:
        ValueError: no pair is left.
    """
    kept, rendered, prompt_lengths, tied, dropped = [], [], [], 0, 0
    for number, comparison in enumerate(comparisons):
        found = ranked_pairs(comparison.ranks, pairs)
        tied += not found
        candidates = [render_response(comparison.messages, response, tokenizer) for response in comparison.responses]
        first = len(render_prompt(comparison.messages, tokenizer))
        for chosen, rejected in found:
            if max(len(candidates[chosen]), len(candidates[rejected])) > row_tokens:
                dropped += 1
                continue
            kept.append((number, chosen, rejected))
            rendered.append([candidates[chosen], candidates[rejected]])
            prompt_lengths.append(first)
    if not kept:
        raise ValueError(
            f"none of {len(comparisons)} comparisons gives a pair: {tied} are all ties, and {dropped} pairs are longer "
            f"than {row_tokens} tokens"
        )
    batch = candidate_batch(rendered, prompt_lengths, row_tokens, tokenizer.pad_id)
    return batch, PairReport(tied=tied, dropped=dropped, kept=tuple(kept))


def candidate_batch(
    rendered: Sequence[Sequence[Sequence[int]]], prompt_lengths: Sequence[int], row_tokens: int, pad_id: int
) -> PreferenceBatch:
    """Rendered candidates (two of a pair, or up to C) of each prompt as rows; the reference is still NaN.

    Args:
        rendered: token ids, prompt included, of each candidate of each prompt.
        prompt_lengths: tokens that the candidates of a prompt have in common.
        row_tokens: columns (T); no candidate is longer.
        pad_id: what follows the candidate.
    """
    shape = (len(rendered), max(map(len, rendered)), row_tokens + 1)
    tokens_BCT, lengths_BC = padded(rendered, shape, pad_id)
    return PreferenceBatch(
        tokens_BCT=tokens_BCT[:, :, :-1],
        targets_BCT=tokens_BCT[:, :, 1:],
        lengths_BC=lengths_BC,
        prompt_lengths_B=np.array(prompt_lengths, np.int32),
        logp_ref_BC=np.full(lengths_BC.shape, np.nan, np.float32),
    )


def pair_ids(batch: PreferenceBatch) -> list[str]:
    """An id for each pair that depends on nothing but its tokens: neither on its place nor on the padding."""
    ids = []
    for tokens_CT, lengths_C, first in zip(batch.tokens_BCT, batch.lengths_BC, batch.prompt_lengths_B, strict=True):
        responses = [tokens_T[:length].tolist() for tokens_T, length in zip(tokens_CT, lengths_C, strict=True)]
        ids.append(hashlib.sha256(repr((int(first), responses)).encode()).hexdigest()[:32])
    return ids


def with_reference(batch: PreferenceBatch, logps: Mapping[str, np.ndarray]) -> PreferenceBatch:
    """The batch with the reference's log-probabilities filled in by the pairs' ids.

    Args:
        batch: pairs on the host.
        logps: id -> f32[2], nats.

    Raises:
        ValueError: a pair has none, or they are not finite.
    """
    ids = pair_ids(batch)
    missing = [number for number, name in enumerate(ids) if name not in logps]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(ids)} pairs have no reference log-probabilities, pair {missing[0]} first"
        )
    logp_ref_BC = np.stack([logps[name] for name in ids]).astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(logp_ref_BC).all(axis=1))
    if len(broken):
        raise ValueError(
            f"the reference's log-probabilities of {len(broken)} of {len(ids)} pairs are not finite, those of pair "
            f"{broken[0]} first ({logp_ref_BC[broken[0]].tolist()}): is the reference model damaged?"
        )
    return dataclasses.replace(batch, logp_ref_BC=logp_ref_BC)
