"""Cutting arguments into options and finding the leaf each one sets."""

import pytest

from gptjax.options import Leaf, listed, options, parsed, resolve


def test_arguments_are_cut_at_double_dashes():
    cut = list(options(["--a.b-c", "-1", "x=y", "--d=-2", "--e="]))
    assert [option.name for option in cut] == ["a.b_c", "d", "e"]
    assert [option.values for option in cut] == [["-1", "x=y"], ["-2"], [""]]
    assert [option.flag for option in cut] == ["--a.b-c", "--d", "--e"]


def test_a_leading_value_is_refused():
    with pytest.raises(ValueError, match="'4' belongs to no option"):
        list(options(["4", "--a"]))


def test_no_resolves_to_booleans_only():
    leaves = {"a.b": Leaf(True, bool), "a.c": Leaf(1, int), "no_d": Leaf(True, bool)}
    assert [resolve(name, leaves) for name in ("a.b", "a.no_b", "a.no_c", "no_d", "no_no_d", "x")] == [
        *("a.b", "a.b", None, "no_d", "no_d", None)
    ]


@pytest.mark.parametrize(("token", "expected"), [("--no-b", False), ("--b", True)])
def test_a_flag_needs_no_value(token, expected):
    (option,) = options([token])
    assert parsed(option, "b", Leaf(not expected, bool)) is expected


def test_a_type_that_no_text_can_spell_is_refused():
    class Opaque:
        def __init__(self, *stuff):
            pass

    (option,) = options(["--f", "1"])
    with pytest.raises(ValueError, match="--f: expected Opaque, got '1'"):
        parsed(option, "f", Leaf(Opaque(), Opaque))


def test_long_lists_are_cut_short():
    assert listed(list("abc")) == "a, b, c"
    assert listed(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
