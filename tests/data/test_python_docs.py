"""The default corpus: large enough, the same each time, and nothing held out leaks into training."""

import ast
import subprocess
import sys

import pytest

from gptjax.data import python_docs, python_objects
from gptjax.data.python_docs import documents, fingerprint, is_heldout, split_objects
from gptjax.data.python_objects import DocObject, LibraryFile, doc_objects, library_files
from gptjax.data.python_questions import questions, summary, unanswered_questions
from gptjax.data.sources import Document

SOURCE = '''"""Module text."""
import os
if os.name:
    def opened(path, *, mode="r"):
        """Open it."""
        def inner():
            """Not found: it lies within a function."""
else:
    def other():
        """Other."""
class Box:
    """A box."""
    def __init__(self, size: int = 3): ...
    def put(self, thing, /, n=1):
        """Put."""
    def clear(self):
        """Clear."""
    @staticmethod
    def make(n):
        """Make."""
    class Lid:
        """A lid."""
        async def lift(self):
            """Lift."""
try:
    def quick(): "Quick."
except ImportError:
    def slow(): "Slow."
'''


def item(doc, name="pkg.thing", kind="function", signature="(x)"):
    return DocObject(name=name, kind=kind, module=name.partition(".")[0], signature=signature, doc=doc)


def test_definitions_are_found_with_kind_and_signature():
    found = list(python_objects._parsed(LibraryFile(module="m", text=SOURCE)))
    assert [(x.kind, x.name + x.signature, x.doc) for x in found] == [
        ("module", "m", "Module text."),
        ("function", "m.opened(path, *, mode='r')", "Open it."),
        ("function", "m.other()", "Other."),
        ("class", "m.Box(size: int=3)", "A box."),
        ("method", "m.Box.__init__(size: int=3)", ""),
        ("method", "m.Box.put(thing, /, n=1)", "Put."),
        ("method", "m.Box.clear()", "Clear."),
        ("method", "m.Box.make(n)", "Make."),
        ("class", "m.Box.Lid", "A lid."),
        ("method", "m.Box.Lid.lift()", "Lift."),
        ("function", "m.quick()", "Quick."),
        ("function", "m.slow()", "Slow."),
    ]


def test_well_known_objects_are_there():
    names = {found.name: found for found in doc_objects()}
    assert names["os.path.commonpath"].signature == "(paths)"
    assert names["len"].module == "builtins"
    assert names["str.join"].kind == "method"
    assert {"math.sin", "datetime.datetime.isoformat", "collections.deque.append", "json.loads"} <= set(names)
    assert names["textwrap.TextWrapper.wrap"].signature == "(text)"


def test_tests_and_installed_packages_are_left_out():
    tops = {file.module.partition(".")[0] for file in library_files()}
    assert tops.isdisjoint({"test", "idlelib", "site-packages", "pip", "numpy"})
    assert not [file.module for file in library_files() if ".test" in file.module]


def test_the_corpus_is_large_and_splits_by_module():
    train, heldout = documents("train"), documents("heldout")
    assert sum(len(d.text.encode()) for d in train) > 1_500_000
    assert 0.03 < len(heldout) / len(train) < 0.3
    tops = [
        {d.origin.split(":")[1].partition(".")[0] for d in split if d.origin.startswith("source")}
        for split in (documents("train", include_source=True), documents("heldout", include_source=True))
    ]
    if tops[0]:  # some distributions ship no sources
        assert tops[0].isdisjoint(tops[1])
    kinds = {d.origin.partition(":")[0] for d in train}
    assert {"docstrings", "topic"} >= kinds >= {"docstrings"}


def test_no_document_and_no_docstring_is_in_both_splits_or_twice():
    for source in (False, True):
        train, heldout = documents("train", include_source=source), documents("heldout", include_source=source)
        texts = [d.text for d in (*train, *heldout)]
        assert len(texts) == len(set(texts))
    trained = {found.doc for found in doc_objects() if not is_heldout(found.module)}
    assert trained.isdisjoint(found.doc for found in split_objects("heldout"))


def test_heldout_copies_of_training_text_are_dropped(monkeypatch):
    names = [f"m{i}" for i in range(100)]
    out, kept = (next(n for n in names if is_heldout(n) == side) for side in (True, False))
    objects = [
        item("Shared text.", f"{out}.f"),
        item("Shared text.", f"{kept}.f"),
        item("Own text.", f"{out}.g"),
        item("Own text.", f"{out}.h"),
        item("Public.", f"_{kept}.p"),
        item("Public.", f"{kept}.p"),
    ]
    monkeypatch.setattr(python_docs, "doc_objects", lambda: objects)
    python_docs.split_objects.cache_clear()
    try:
        assert [x.name for x in split_objects("heldout")] == [f"{out}.g"]
        assert [x.name for x in split_objects("train")] == [f"{kept}.f", f"{kept}.p"]
    finally:
        python_docs.split_objects.cache_clear()


@pytest.mark.parametrize("fraction", [place / 50 for place in range(51)])
def test_twin_modules_fall_on_the_same_side(fraction, monkeypatch):
    monkeypatch.setattr(python_docs, "HELDOUT_FRACTION", fraction)
    for twin, module in [("_pydecimal", "decimal"), ("ntpath", "os.path"), ("_collections_abc", "collections.abc")]:
        assert is_heldout(twin) == is_heldout(module)
    assert is_heldout("os.path") == is_heldout("os")


def test_the_split_is_the_same_on_every_machine():
    assert [is_heldout(name) for name in ("logging", "json", "os", "threading")] == [True, False, False, True]


def test_the_fingerprint_depends_on_texts_and_their_borders():
    one = [Document(text="ab", origin="x"), Document(text="c", origin="y")]
    assert fingerprint(one) == fingerprint([Document(text="ab", origin="z"), Document(text="c", origin="")])
    assert fingerprint(one) != fingerprint([Document(text="a", origin="x"), Document(text="bc", origin="y")])
    assert len(fingerprint([])) == 64


def test_another_process_finds_the_same_corpus():
    code = "from gptjax.data.python_docs import *; print(fingerprint(documents('heldout')))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"}, cwd=ROOT)
    assert done.stdout.strip() == fingerprint(documents("heldout"))
    assert done.stderr == ""


ROOT = python_docs.__file__.removesuffix("gptjax/data/python_docs.py")


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        ("Return the longest\n   common prefix", "Return the longest common prefix."),
        ("return the length of it. The rest is not used.", "Return the length of it."),
        ("Wrap :class:`~a.Box` in ``paper`` for sale.\n\nMore.", "Wrap `a.Box` in `paper` for sale."),
        ("thing(x) -> int\n\nReturn the number of parts.", "Return the number of parts."),
        ("pkg.thing(x)\nReturn the number of parts.", "Return the number of parts."),
        ("Split names, e.g. Those of files, at dots.", "Split names, e.g. Those of files, at dots."),
        ("Is it a well known name?", "Is it a well known name?"),
        ("Return it.", None),  # too short
        ("Return " + "very " * 40 + "much.", None),  # too long
        (">>> thing(3) gives four of them", None),
        ("The following names are known:", None),
        ("Return the names (of all files", None),
        ("x = 3; y = 4; z = (x, y, 17, 20)", None),
        ("thing(x)", None),
    ],
)
def test_summaries_are_plain_sentences(doc, expected):
    assert summary(item(doc)) == expected


@pytest.mark.parametrize(("split", "least"), [("train", 2500), ("heldout", 300)])
def test_there_are_enough_questions_and_each_is_well_formed(split, least):
    asked = questions(split)
    assert len(asked) >= least
    assert len({q.answer for q in asked}) == len({q.name for q in asked}) == len(asked)
    assert {q.form for q in asked} == {"plain", "signature", "examples"}
    assert {q.kind for q in asked} == {"function", "class", "method"}
    for q in asked:
        assert q.answer[0].isupper() or not q.answer[0].isalpha()
        assert q.answer[-1] in ".?"
        assert 20 <= len(q.answer) <= 160
        assert f"`{q.name}`" in q.messages[-1]["content"]
        assert is_heldout(q.module) == (split == "heldout")
        assert q.conversation[-1] == {"role": "assistant", "content": q.answer}


def test_no_heldout_answer_occurs_anywhere_in_the_training_questions():
    trained = {q.answer for q in questions("train")}
    assert trained.isdisjoint(q.answer for q in questions("heldout"))
    prompts = "\n".join(q.messages[0]["content"] for q in questions("train"))
    assert not [q.name for q in questions("heldout") if f"`{q.name}`" in prompts]


def test_worked_examples_come_from_the_same_module_and_are_not_the_question():
    answers = {q.name: q for q in questions("train")}
    shown = [q for q in questions("train") if q.form == "examples"]
    for q in shown:
        first, second, last = q.messages[0]["content"].split("\n\n")
        names = [text.split("`")[1] for text in (first, second, last)]
        assert len(set(names)) == 3
        assert names[2] == q.name
        for name, text in zip(names, (first, second), strict=False):
            assert text == f"What does `{name}` do?\n{answers[name].answer}"
            assert answers[name].module.partition(".")[0] == q.module.partition(".")[0]


def test_errors_name_the_choice():
    with pytest.raises(ValueError, match="split 'test': choose train or heldout"):
        questions("test")


def test_a_broken_library_file_is_passed_over():
    assert list(python_objects._parsed(LibraryFile(module="m", text="def f(:"))) == []
    assert ast.parse(SOURCE)


def test_unanswered_questions_ask_about_undocumented_objects_of_training_modules_only():
    asked = unanswered_questions()
    documented = {item.name for item in doc_objects()}
    assert len(asked) > 1000  # prompts without an answer
    assert not documented & {question.name for question in asked}
    assert not any(is_heldout(question.module) or question.answer for question in asked)
    assert all(f"`{question.name}`" in question.messages[0]["content"] for question in asked)
    assert len({question.name for question in asked}) == len(asked)
