"""Curation: duplicates, heavy users, splits by user, personal data, few-shot prompts."""

import pytest
from golden_cases import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.curate import CurationConfig, Fate, fates, few_shot_examples, normalised, split_of
from gptjax.data.personal_data import personal_data

USERS = [f"u{i}" for i in range(12)]


def test_golden_curation():
    inputs, expected = GOLDEN["SFT4_curation"]["inputs"], GOLDEN["SFT4_curation"]["expected"]
    bounds = dict(inputs["splits"])
    config = CurationConfig(
        prefix_characters=inputs["prefix_len"],
        prompts_per_user=inputs["cap_per_user"],
        valid=bounds["valid"] - bounds["train"],
        test=bounds["test"] - bounds["valid"],
    )
    found = list(fates(map(tuple, inputs["rows"]), config))
    kept = [[i, inputs["rows"][i][0], fate.split] for i, fate in enumerate(found) if fate.split]
    assert kept == expected["kept"]
    assert [[i, fate.reason] for i, fate in enumerate(found) if fate.reason] == expected["dropped"]
    users = {split: {user for _, user, to in kept if to == split} for split in bounds}
    shared = users["train"] & users["valid"] | users["train"] & users["test"] | users["valid"] & users["test"]
    assert sorted(shared) == expected["users_in_more_than_one_split"]


def test_golden_few_shot_expansion():
    case = GOLDEN["SFT5_few_shot_expansion"]
    examples = few_shot_examples(case["inputs"]["instruction"], case["inputs"]["pairs"])
    assert [list(example) for example in examples] == case["expected"]["examples"]
    assert few_shot_examples("I", [("q", "a")]) == [("I\nq\n", "a")]


def test_prompts_are_compared_after_unicode_case_and_space():
    # e + combining accent is é; a tab and a no-break space are white space
    assert normalised("  Cafe\u0301\t au\u00a0 LAIT ") == "caf\u00e9 au lait"


PROMPTS = st.lists(st.tuples(st.sampled_from(USERS), st.text("ab C", max_size=6)), max_size=60)


@settings(deadline=None)
@given(prompts=PROMPTS, prefix=st.integers(1, 6), cap=st.integers(1, 4))
def test_no_user_spans_splits_no_prefix_comes_twice_and_no_user_exceeds_the_cap(prompts, prefix, cap):
    config = CurationConfig(prefix_characters=prefix, prompts_per_user=cap, valid=0.3, test=0.3)
    found = list(fates(prompts, config))
    assert len(found) == len(prompts)
    kept = [(user, normalised(text)[:prefix]) for (user, text), fate in zip(prompts, found, strict=True) if fate.split]
    assert len({key for _, key in kept}) == len(kept)
    assert all(sum(user == other for other, _ in kept) <= cap for user in USERS)
    for (user, text), fate in zip(prompts, found, strict=True):
        assert (fate.split is None) != (fate.reason is None)
        assert fate.split in (None, split_of(user, config))
        if fate.reason == "duplicate_prefix":
            assert any(normalised(text)[:prefix] == normalised(other)[:prefix] for _, other in prompts)
    assert list(fates(iter(prompts), config)) == found


def test_a_fate_does_not_wait_for_the_next_prompt():
    def prompts():
        yield "u1", "first"
        raise AssertionError("asked for more than was needed")

    assert next(fates(prompts(), CurationConfig())) == Fate("train", None)


def test_a_user_keeps_its_split_as_prompts_come_and_go_and_the_shares_are_those_asked_for():
    config = CurationConfig(valid=0.2, test=0.1)
    found = [split_of(str(number), config) for number in range(40_000)]
    # three standard errors of a share of 0.2 among 40,000: 0.006
    assert found.count("valid") / 40_000 == pytest.approx(0.2, abs=0.006)
    assert found.count("test") / 40_000 == pytest.approx(0.1, abs=0.006)


def test_personal_data_is_dropped_from_training_only():
    # u1 is in train, u4 in test (the golden case)
    prompts = [("u1", "my address is jo@example.com"), ("u4", "write to al@example.com"), ("u1", "hello")]
    assert list(fates(prompts, CurationConfig())) == [Fate(None, "pii_email"), Fate("test", None), Fate("train", None)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("mail jo.b+x@mail.example.co.uk now", "email"),
        ("at @jo or jo@home", None),
        ("call +44 20 7946 0958 today", "phone"),
        ("call (555) 123-4567 or 555.123.4567", "phone"),
        ("from 1990 to 2020, 12345 of 67890", None),
        ("card 4111 1111 1111 1111 exp 12/30", "card"),  # 4*2=8 and seven doubled 1s: 8 + 14 + 8 = 30
        ("card 4111-1111-1111-1112", None),  # the check digit is wrong
        ("0000 0000 0000 0000", None),
        ("ssn 219-09-9999", "ssn"),
        ("part 000-12-3456 and 219-00-1234", None),
        ("ping 192.168.0.1 please", "ip"),
        ("ping 2001:db8::8a2e:370:7334", "ip"),
        ("at 12:30:45 or 999.1.1.1, see std::vector, a::b, x[::2] and x[1::2]", None),
        ("clone https://jo:secret@example.com/x.git", "url_credentials"),
        ("see https://example.com:8080/a?b=c@d", None),
        ("", None),
    ],
)
def test_personal_data_is_told_by_kind(text, kind):
    assert personal_data(text) == kind


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prefix_characters": 0}, "prefix_characters must be at least 1, got 0"),
        ({"prompts_per_user": 0}, "prompts_per_user must be at least 1, got 0"),
        ({"valid": 0.5, "test": 0.5}, "leave some for train"),
        ({"valid": -0.1}, "valid -0.1 and test 0.1 must not be negative"),
    ],
)
def test_wrong_rules_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        CurationConfig(**wrong)
