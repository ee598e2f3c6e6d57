"""The simulated labeler: a rubric that can be checked by hand, and noise that is a known choice model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjax.data.labeler import WEIGHTS, SimulatedLabeler, corruptions, rubric
from gptjax.data.preferences import check_ranks
from gptjax.data.python_questions import questions

NAME = "json.dump_text"
ANSWER = "Dump a value as JSON text."


def test_rubric_by_hand():
    # words json, dump, text with weights 1, 3, 3; all are used; 26 characters are 44 / 35 spreads below 70
    parts = rubric(NAME, ANSWER, True)
    assert parts["relevance"] == 1.0
    assert parts["sentence"] == pytest.approx(1.0)
    assert parts["length"] == pytest.approx(np.exp(-0.5 * (44 / 35) ** 2))
    assert parts["repetition"] == parts["ending"] == 1.0


@pytest.mark.parametrize(
    ("answer", "part", "value"),
    [
        ("Dump a value.", "relevance", np.sqrt(3 / 7)),  # of json (1), dump (3), text (3) only dump
        ("Dumps the values.", "relevance", np.sqrt(3 / 7)),  # stems
        ("Return the sum.", "relevance", 0.0),
        ("dump a value as JSON text.", "sentence", 0.7),  # small letter
        ("`dump` writes text.", "sentence", 1.0),
        ("Dump a value as JSON text", "sentence", 0.6),  # no full stop
        ("Dump a value. As text.", "sentence", 0.85),  # two sentences
        ("Dump a value as text.", "prose", 1.0),
        ("Dump sys.argv values.", "prose", 1 - 5 / 19),  # one dot within 19 characters
        ("Dump an AST, or 42.", "prose", 0.0),  # three capitals, a comma, two digits in 17 characters
        ("a a a a", "repetition", 0.0),  # pairs aa aa aa, triples aaa aaa: 3 of 5 said before
        ("one two one two three four", "repetition", 1 - 2 / 9),  # of 5 pairs and 4 triples, one pair said before
        ("Dump it", "repetition", 0.0),
    ],
)
def test_parts_by_hand(answer, part, value):
    assert rubric(NAME, answer, True)[part] == pytest.approx(value)


def test_names_are_split_at_dots_underscores_and_capitals():
    assert rubric("os.path.commonpath", "The common name of an os.", True)["relevance"] == pytest.approx(np.sqrt(4 / 5))
    assert rubric("ConfigParser.readFile", "Parse a file.", True)["relevance"] == pytest.approx(np.sqrt(4 / 8))


def test_the_score_is_the_weighted_sum_and_lies_in_0_to_5():
    labeler = SimulatedLabeler()
    parts = rubric(NAME, ANSWER, False)
    assert labeler.gold_score(NAME, ANSWER, False) == pytest.approx(sum(WEIGHTS[name] * parts[name] for name in parts))
    assert labeler.gold_score(NAME, ANSWER, True) - labeler.gold_score(NAME, ANSWER, False) == pytest.approx(0.5)
    assert sum(WEIGHTS.values()) == 5.0
    assert labeler.gold_score(NAME, "", True) == 0.0


@given(name=st.from_regex(r"\A\w+(\.\w+)*\Z"), answer=st.text(max_size=300), ended=st.booleans())
def test_every_part_lies_between_0_and_1(name, answer, ended):
    assert all(0.0 <= value <= 1.0 for value in rubric(name, answer, ended).values())


def test_scores_spread_over_good_and_corrupted_answers():
    labeler, rng = SimulatedLabeler(), np.random.default_rng(0)
    asked = questions("heldout")
    answers = [question.answer for question in asked]
    golds: dict[str, list[float]] = {}
    for question in asked:
        golds.setdefault("answer", []).append(labeler.gold_score(question.name, question.answer, True))
        for response in corruptions(question.answer, rng, answers):
            gold = labeler.gold_score(question.name, response.content, response.ended)
            golds.setdefault(response.extra["source"], []).append(gold)
    means = {source: np.mean(values) for source, values in golds.items()}
    # relevance, all that an answer to another question lacks, weighs 0.5 and is 0.69 on average
    assert means["answer"] > means["off_topic"] + 0.25
    assert means["answer"] > max(means["truncated"], means["repeated"]) + 0.5
    every = np.concatenate(list(golds.values()))
    assert every.std() > 0.8
    assert every.min() < 1.5
    assert every.max() > 4.8


def test_without_ties_choices_follow_bradley_terry():
    # gold 1.0 against 0.5 at temperature 0.5: sigmoid(1) = 0.731; 4,000 draws have a standard error of 0.007
    labeler, rng = SimulatedLabeler(temperature=0.5, tie_width=0.0), np.random.default_rng(0)
    wins = np.mean([labeler.rank([1.0, 0.5], rng)[0] == 1 for _ in range(4000)])
    assert abs(wins - 1 / (1 + np.exp(-1.0))) < 0.03


def test_noise_shrinks_with_the_temperature_and_ties_grow_with_the_width():
    rng = np.random.default_rng(0)
    calm = SimulatedLabeler(temperature=1e-6, tie_width=0.0)
    assert all(calm.rank([1.0, 3.0, 2.0], rng) == [3, 1, 2] for _ in range(50))
    coarse = SimulatedLabeler(temperature=0.1, tie_width=1e6)
    assert coarse.rank([1.5, 3.0, 2.0], np.random.default_rng(0)) == [1, 1, 1]


@given(
    golds=st.lists(st.floats(-5, 5), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    width=st.just(0.0) | st.floats(0.01, 2),
)
def test_ranks_are_a_weak_order_and_repeatable(golds, seed, width):
    labeler = SimulatedLabeler(tie_width=width)
    first, second = (labeler.rank(golds, np.random.default_rng(seed)) for _ in range(2))
    assert first == second
    check_ranks(first)


def test_corruptions_are_labelled_and_repeatable():
    words = "Return the length of the longest common prefix of all names."
    first, second = (corruptions(words, np.random.default_rng(5), [words, "Open a file."]) for _ in range(2))
    assert first == second
    by_source = {response.extra["source"]: response for response in first}
    assert list(by_source) == ["truncated", "repeated", "off_topic"]
    assert words.startswith(by_source["truncated"].content)
    assert not by_source["truncated"].ended
    assert by_source["repeated"].content.startswith(words + " ")
    assert by_source["off_topic"].content == "Open a file."
    assert [r.extra["source"] for r in corruptions("Open.", np.random.default_rng(0), ["Open."])] == [
        "truncated",
        "repeated",
    ]


def test_bad_settings_are_errors():
    with pytest.raises(ValueError, match=r"temperature 0\.0 must be above 0"):
        SimulatedLabeler(temperature=0.0)
    with pytest.raises(ValueError, match=r"tie_width -1\.0 must be 0 \(no ties\)"):
        SimulatedLabeler(tie_width=-1.0)
    with pytest.raises(ValueError, match="scores must be finite"):
        SimulatedLabeler().rank([1.0, float("nan")], np.random.default_rng(0))
