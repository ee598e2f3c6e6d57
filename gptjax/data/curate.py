"""Curation of collected prompts: near-duplicates, heavy users, splits that no user spans, personal data; few-shot."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gptjax.choices import check_numbers
from gptjax.data.heldout import hash_fraction
from gptjax.data.personal_data import personal_data

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """What is dropped and how the rest is split.

    prefix_characters: prompts that agree in so many first characters of their normal form are near-duplicates.
    prompts_per_user: at most so many are kept of each user.  valid, test: shares of the users; the rest is train.
    """

    prefix_characters: int = 100
    prompts_per_user: int = 200
    valid: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        check_numbers(self, at_least_1=("prefix_characters", "prompts_per_user"))
        if min(self.valid, self.test) < 0 or self.valid + self.test >= 1:
            raise ValueError(f"valid {self.valid} and test {self.test} must not be negative and leave some for train")


class Fate(NamedTuple):
    """What becomes of a prompt: the split that it belongs to, or (split None) the reason for dropping it."""

    split: str | None
    reason: str | None


def fates(prompts: Iterable[tuple[str, str]], config: CurationConfig) -> Iterator[Fate]:
    """One fate for each prompt, in order and without waiting for the next one; equal input gives equal fates.

    A prompt goes through these rules until one drops it: an earlier prompt had the same prefix (of any user and split,
    so valid and test share none with train); its user has `prompts_per_user` already; it is in the training split and
    holds personal data.

    Args:
        prompts: (user, text); the user is whatever no split may share, such as a person or an organisation.
        config: the rules' numbers.

    Returns:
        Iterator of fates; reasons are duplicate_prefix, user_cap, and pii_KIND (see gptjax.data.personal_data).

    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.2 (per user) and appendix A.2 (per organisation). The length
    of the prefix is not stated there.
    """
    seen: set[bytes] = set()
    kept: Counter[str] = Counter()
    for user, text in prompts:
        prefix = hashlib.sha256(normalised(text)[: config.prefix_characters].encode()).digest()
        if prefix in seen:
            yield Fate(None, "duplicate_prefix")
            continue
        seen.add(prefix)
        if kept[user] == config.prompts_per_user:
            yield Fate(None, "user_cap")
            continue
        kept[user] += 1
        split = split_of(user, config)
        kind = personal_data(text) if split == "train" else None
        yield Fate(split, None) if kind is None else Fate(None, f"pii_{kind}")


def normalised(text: str) -> str:
    """The form in which prompts are compared: Unicode NFC, white space as single spaces, lower case."""
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def split_of(user: str, config: CurationConfig) -> str:
    """train, valid or test: from a hash of the user alone, so that it never changes as prompts come and go."""
    fraction = hash_fraction(user)
    if fraction < 1 - config.valid - config.test:
        return "train"
    return "valid" if fraction < 1 - config.test else "test"


def few_shot_examples(instruction: str, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """K examples out of an instruction with K query-response pairs, each with the other K - 1 before it.

    Args:
        instruction: what to do.
        pairs: (query, response).

    Returns:
        (prompt, response) for each pair; the parts of a prompt end in a line feed.

    Source: Ouyang et al. 2022, arXiv:2203.02155, appendix A.1.
    """
    examples = []
    for index, (query, response) in enumerate(pairs):
        others = [part for other, pair in enumerate(pairs) if other != index for part in pair]
        examples.append(("".join(f"{part}\n" for part in (instruction, *others, query)), response))
    return examples
