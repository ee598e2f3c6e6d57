"""Questions about Python's own library with the first sentence of the documentation as answer."""

import functools
import hashlib
import re
from dataclasses import dataclass

from gptjax.data.conversations import Message
from gptjax.data.python_docs import Split, is_heldout, split_objects
from gptjax.data.python_objects import DocObject, Kind, library_objects

MIN_ANSWER, MAX_ANSWER = 20, 160  # characters
_MAX_SIGNATURE = 80  # characters; a longer one is left out of the question
_PHRASINGS = (
    "What does `{name}` do?",
    "Explain `{name}` briefly.",
    "Describe the {kind} `{name}`.",
    "What is `{name}` for?",
    "In one sentence, what is the purpose of the {kind} `{name}`?",
    "Tell me about `{name}`.",
    "Summarize the {kind} `{name}` in a sentence.",
    "I found `{name}` in some Python code. What is it?",
)
_ROLE = re.compile(r":[\w:]+:`~?([^`<]+)`")  # reStructuredText: :class:`~a.B`
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)[.!?](?=\s+[A-Z`(\"'])")
_NOT_PROSE = re.compile(
    r"""
      >>> | -> | => | -- | == | \*\* | [{}\\|<>@~^\#\[\]]   # code, arrows and tables
    | https?: | \.\.\. | :$                                # links, ellipses, what announces a list
    | ^\W | ^(XXX|TODO|FIXME|Deprecated|See\ )             # what does not begin like a sentence
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and its answer.

    messages: the prompt, one user message.  answer: one sentence, "" if the library gives none.
    name, kind, module: of the object asked about.
    form: "plain", "signature" (it is in the prompt) or "examples" (two worked examples are in the prompt).
    """

    messages: tuple[Message, ...]
    answer: str
    name: str
    kind: Kind
    module: str
    form: str

    @property
    def conversation(self) -> list[Message]:
        """Prompt and answer, for supervised fine-tuning."""
        return [*self.messages, {"role": "assistant", "content": self.answer}]


def questions(split: Split = "train") -> list[Question]:
    """One question for each public function, class and method whose documentation begins with a usable sentence.

    Args:
        split: "train" or "heldout"; see `python_docs.is_heldout`.

    Returns:
        Questions in a fixed order, no two with the same answer; no held-out answer is that of a training question.

    Raises:
        ValueError: unknown split.
    """
    answered = _answered(split)
    by_module: dict[str, list[DocObject]] = {}
    for item in answered.values():
        by_module.setdefault(item.module.partition(".")[0], []).append(item)
    answer_of = {item.name: answer for answer, item in answered.items()}
    asked = []
    for answer, item in answered.items():
        form, text = _asked(item, by_module[item.module.partition(".")[0]], answer_of)
        asked.append(_question(item, answer, form, text))
    return asked


def unanswered_questions() -> list[Question]:
    """One question for each public function, class and method of the training modules that has no documentation.

    Prompts without demonstrations: no model has seen an answer to them, as with held-out questions. They need the
    library's sources, which some distributions omit.

    Returns:
        Questions whose answer is empty, in a fixed order.

    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.2 (prompts of the reward model and PPO carry no answers).
    """
    items = [item for item in library_objects() if not item.doc and not is_heldout(item.module)]
    return [_question(item, "", "plain", _plain(item)) for item in items if _is_public(item)]


def summary(item: DocObject) -> str | None:
    """The first sentence of a docstring, tidied; None if it is no plain sentence of 20..160 characters."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", item.doc)]
    lines = item.doc.split("\n")
    own = item.name.rpartition(".")[2]
    if re.match(rf"(\w+\.)*{re.escape(own)}\s*\(", paragraphs[0]):  # the signature stands in for a first line
        paragraphs = paragraphs[1:] or [" ".join(" ".join(lines[1:]).split())]
    text = _ROLE.sub(r"`\1`", paragraphs[0] if paragraphs else "").replace("``", "`")
    if found := _SENTENCE_END.search(text):
        text = text[: found.end()]
    text = text.strip()
    if not text or _NOT_PROSE.search(text) or text.count("(") != text.count(")") or text.count("`") % 2:
        return None
    text = (text[0].upper() + text[1:]).rstrip(" .,;!") + ("" if text.endswith("?") else ".")
    marks = sum(not character.isalpha() and character not in " `" for character in text)
    usable = MIN_ANSWER <= len(text) <= MAX_ANSWER and marks < 0.15 * len(text) and len(text.split()) >= 4
    return text if usable else None


@functools.cache
def _answered(split: Split) -> dict[str, DocObject]:
    """Answer -> object, the first one with that answer."""
    taken = _answered("train") if split == "heldout" else {}
    found: dict[str, DocObject] = {}
    for item in split_objects(split):
        if item.kind != "module" and _is_public(item) and (answer := summary(item)) and answer not in taken:
            found.setdefault(answer, item)
    return found


def _asked(item: DocObject, neighbours: list[DocObject], answer_of: dict[str, str]) -> tuple[str, str]:
    """(form, text of the user message); 15 % with the signature, 15 % with two worked examples."""
    digest = _digest(item.name)
    plain = _plain(item)
    draw = digest // len(_PHRASINGS) % 100
    if draw < 15 and 2 < len(item.signature) <= _MAX_SIGNATURE and "`" not in item.signature:
        return "signature", f"Signature: {item.name}{item.signature}\n{plain}"
    others = [other for other in neighbours if other.name != item.name]
    if 15 <= draw < 30 and len(others) >= 2:
        first = digest // 1000 % len(others)
        second = (first + 1 + digest // 10**9 % (len(others) - 1)) % len(others)
        examples = [f"What does `{others[i].name}` do?\n{answer_of[others[i].name]}\n\n" for i in (first, second)]
        return "examples", "".join(examples) + f"What does `{item.name}` do?"
    return "plain", plain


def _question(item: DocObject, answer: str, form: str, text: str) -> Question:
    message = {"role": "user", "content": text}
    return Question(messages=(message,), answer=answer, name=item.name, kind=item.kind, module=item.module, form=form)


def _plain(item: DocObject) -> str:
    return _PHRASINGS[_digest(item.name) % len(_PHRASINGS)].format(name=item.name, kind=item.kind)


def _is_public(item: DocObject) -> bool:
    return not any(part.startswith("_") for part in item.name.split("."))


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"question:{name}".encode()).digest()[:8], "big")
