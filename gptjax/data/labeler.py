"""A simulated labeler: a program, not people, that ranks answers by a fixed rubric with noise like a person's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptjax.data.preferences import Response

WEIGHTS = {"relevance": 0.5, "sentence": 0.5, "prose": 2.5, "length": 0.5, "repetition": 0.5, "ending": 0.5}
TARGET_LENGTH, LENGTH_SPREAD = 70.0, 35.0  # characters
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SUFFIXES = ("ations", "ation", "ings", "ing", "ers", "er", "ies", "ed", "es", "s", "e", "y")
_SENTENCE_BREAK = re.compile(r"[.!?](?=\s)")


@dataclass(frozen=True, kw_only=True)
class SimulatedLabeler:
    """Ranks answers by `gold_score` plus Gumbel noise; stands in for human labelers where there are none.

    temperature: gold points that count as one unit of noise; larger is noisier.
    tie_width: gold points; noisy scores that fall into one bin of this width are tied, 0 forbids ties.

    Raises:
        ValueError: temperature is not positive, or tie_width is neither 0 nor at least 1e-6.

    Source: Plackett 1975, Luce 1959 (choice model); Gao et al. 2022, arXiv:2210.10760 (a gold score).
    """

    temperature: float = 0.5
    tie_width: float = 0.25

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} must be above 0")
        if self.tie_width != 0 and not self.tie_width >= 1e-6:
            raise ValueError(f"tie_width {self.tie_width} must be 0 (no ties) or at least 1e-6")

    def gold_score(self, prompt_name: str, answer: str, ended: bool) -> float:
        """The score without noise, in 0..5: the sum of WEIGHTS times `rubric`."""
        parts = rubric(prompt_name, answer, ended)
        return sum(weight * parts[name] for name, weight in WEIGHTS.items())

    def rank(self, golds: Sequence[float], rng: np.random.Generator) -> list[int]:
        """Ranks of candidates, 1 = best, dense, ties equal: a weak order.

        Args:
            golds: score of each candidate (gold points).
            rng: source of the noise; equal generators give equal ranks.

        Returns:
            One rank per candidate. Without ties, candidate i beats j with probability
            sigmoid((gold_i - gold_j) / temperature).

        Raises:
            ValueError: a score is not finite.
        """
        golds_C = np.asarray(golds, np.float64)
        if not np.isfinite(golds_C).all():
            raise ValueError(f"scores must be finite, got {list(golds)}")
        noisy_C = golds_C + self.temperature * rng.gumbel(size=len(golds_C))
        if self.tie_width:
            noisy_C = np.floor(noisy_C / self.tie_width)
        return [1 + len(set(noisy_C[noisy_C > value].tolist())) for value in noisy_C]


def rubric(prompt_name: str, answer: str, ended: bool) -> dict[str, float]:
    """The six parts of the score, each in [0, 1].

    relevance: share of the words of the asked name that the answer uses, the last part of the name counting most; 0.5
    of them is already worth 0.71.  sentence: begins with a capital or a backtick (0.3), ends with a full stop (0.4), is
    one sentence (0.3, 1/n of it for n).  prose: 1 minus five times the share of characters that are neither lowercase
    letters nor spaces, such as code, symbols and numbers; the first one and a final full stop are free.  length: a bell
    curve around 70 characters.  repetition: 1 minus twice the share of word pairs and triples said before; 0 below
    three words.  ending: 1 if the answer ended by itself.

    Args:
        prompt_name: dotted name that was asked about.
        answer: text of the answer.
        ended: whether it ended its turn by itself.

    Returns:
        Part -> value; the weights are in WEIGHTS.
    """
    text = answer.strip()
    return {
        "relevance": _relevance(prompt_name, text),
        "sentence": _sentence(text),
        "prose": _prose(text),
        "length": float(np.exp(-0.5 * ((len(text) - TARGET_LENGTH) / LENGTH_SPREAD) ** 2)) if text else 0.0,
        "repetition": _freshness(text.lower().split()),
        "ending": float(ended and bool(text)),
    }


def corruptions(answer: str, rng: np.random.Generator, others: Sequence[str]) -> list[Response]:
    """Worse variants of an answer, to give the reward model and the labeler something to tell apart.

    Args:
        answer: a good answer; "" if there is none.
        rng: which words are cut and which answer is borrowed; equal generators give equal variants.
        others: answers to other questions.

    Returns:
        Responses whose `extra["source"]` is "truncated" (cut between words, not ended), "repeated" (its end said
        again and again) and, if `others` holds another answer, "off_topic"; without an answer only the last.
    """
    words = answer.split()
    cut = max(1, int(len(words) * rng.uniform(0.3, 0.8)))
    tail = words[-int(rng.integers(2, 5)) :]
    repeated = " ".join(words + tail * int(rng.integers(2, 5)))
    variants = (
        [
            Response(content=" ".join(words[:cut]), ended=False, extra={"source": "truncated"}),
            Response(content=repeated, extra={"source": "repeated"}),
        ]
        if words
        else []
    )
    different = [other for other in others if other != answer]
    if different:
        borrowed = different[int(rng.integers(len(different)))]
        variants.append(Response(content=borrowed, extra={"source": "off_topic"}))
    return variants


def _relevance(name: str, text: str) -> float:
    said = {_stem(word) for word in _WORD.findall(text)}
    last = name.count(".")
    weights = [
        (1.0 + 2.0 * (place == last), _stem(word))
        for place, part in enumerate(name.split("."))
        for word in _WORD.findall(part)
    ]
    total = sum(weight for weight, _ in weights)
    shared = sum(weight * any(_alike(word, other) for other in said) for weight, word in weights)
    return float(np.sqrt(shared / total)) if total else 0.0


def _alike(word: str, other: str) -> bool:
    """Equal stems, or one of four letters or more within the other (`common` in `commonpath`)."""
    short, long = sorted((word, other), key=len)
    return word == other or (len(short) >= 4 and short in long) or (len(short) >= 3 and long.startswith(short))


def _stem(word: str) -> str:
    word = word.lower()
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word.removesuffix(suffix)
    return word


def _sentence(text: str) -> float:
    if not text:
        return 0.0
    n_sentences = 1 + len(_SENTENCE_BREAK.findall(text))
    return 0.3 * (text[0].isupper() or text[0] == "`") + 0.4 * text.endswith(".") + 0.3 / n_sentences


def _prose(text: str) -> float:
    inner = text[1:].removesuffix(".")
    odd = sum(not (character.islower() or character == " ") for character in inner)
    return max(0.0, 1.0 - 5.0 * odd / len(inner)) if inner else 0.0


def _freshness(words: Sequence[str]) -> float:
    if len(words) < 3:
        return 0.0
    grams = [tuple(words[i : i + size]) for size in (2, 3) for i in range(len(words) - size + 1)]
    return max(0.0, 1.0 - 2.0 * (1.0 - len(set(grams)) / len(grams)))
