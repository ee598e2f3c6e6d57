"""The default corpus: the documentation that comes with the Python on this machine, split by module.

A held-out module is held out of every source: docstrings, library code and questions.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

from gptjax.data.heldout import hash_fraction
from gptjax.data.python_objects import DocObject, doc_objects, library_files
from gptjax.data.sources import Document

Split: TypeAlias = Literal["train", "heldout"]
HELDOUT_FRACTION = 0.1  # one for every stage: what one stage holds out, no other may train on

# Modules that document the same things as another one: they must fall on the same side of the split.
_SAME_AS = {
    **{"ntpath": "os", "genericpath": "os", "nturl2path": "urllib", "stat": "os"},
    **{"collections_abc": "collections", "strptime": "time", "weakrefset": "weakref", "threading_local": "threading"},
    **{"compat_pickle": "pickle", "bootlocale": "locale", "sitebuiltins": "site", "markupbase": "html"},
    **{"sre_compile": "re", "sre_parse": "re", "sre_constants": "re", "compression": "compress"},
}


def is_heldout(module: str) -> bool:
    """Whether no part of a module may be trained on: a stable hash of its top-level name, the same on every machine.

    Args:
        module: dotted name; `_pydecimal` counts as `decimal`, `ntpath` as `os`.
    """
    top = module.partition(".")[0]
    family = top.removeprefix("_py" if top.startswith("_py") else "_").strip("_")
    return _hashed_out(_SAME_AS.get(family, family))


@functools.cache
def split_objects(split: Split) -> tuple[DocObject, ...]:
    """Documented objects of one split, each docstring once.

    A held-out object whose docstring also occurs in the training split (an alias, a copy) is in neither.

    Args:
        split: which side.

    Returns:
        The objects; private modules come after public ones, so that of equal docstrings the public one stays.

    Raises:
        ValueError: unknown split.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split {split!r}: choose train or heldout")
    kept: dict[str, DocObject] = {}
    train: set[str] = set()
    for item in sorted(doc_objects(), key=lambda item: item.module.startswith(("_", "ntpath"))):
        if is_heldout(item.module):
            if split == "heldout":
                kept.setdefault(item.doc, item)
        elif split == "train":
            kept.setdefault(item.doc, item)
        else:
            train.add(item.doc)
    return tuple(item for doc, item in kept.items() if doc not in train)


def documents(split: Split = "train", *, include_source: bool = False) -> list[Document]:
    """Docstrings, language topics and, if asked, library code as plain documents, without exact repeats.

    Args:
        split: "train" or "heldout".
        include_source: add the source files of the library (some distributions have none).

    Returns:
        Documents, none of them in both splits; `origin` is "docstrings:os.path", "topic:ASSERTION" or
        "source:json.decoder".

    Raises:
        ValueError: unknown split.
    """
    seen = {document.text for document in _every("train", include_source)} if split == "heldout" else set()
    kept = []
    for document in _every(split, include_source):
        if document.text not in seen:
            seen.add(document.text)
            kept.append(document)
    return kept


def fingerprint(texts: Iterable[Document]) -> str:
    """sha256 (hex) of the documents' texts in their order: equal if and only if the corpus is the same."""
    digest = hashlib.sha256()
    for document in texts:
        raw = document.text.encode(errors="surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _every(split: Split, include_source: bool) -> Iterator[Document]:
    yield from _docstrings(split)
    yield from _topics(split)
    if include_source:
        yield from _sources(split)


def _docstrings(split: Split) -> Iterator[Document]:
    """One page for each module, as in a manual: its docstrings in order."""
    pages: dict[str, list[str]] = {}
    for item in split_objects(split):
        pages.setdefault(item.module, []).append(f"{item.kind} {item.name}{item.signature}\n\n{item.doc}\n")
    for module, entries in pages.items():
        yield Document(text="\n".join(entries), origin=f"docstrings:{module}")


def _topics(split: Split) -> Iterator[Document]:
    try:
        from pydoc_data import topics
    except ImportError:  # some distributions leave it out
        return
    for name, text in sorted(topics.topics.items()):
        if _hashed_out(name) == (split == "heldout"):
            yield Document(text=f"{text.strip()}\n", origin=f"topic:{name}")


def _sources(split: Split) -> Iterator[Document]:
    for file in library_files():
        if file.text.strip() and is_heldout(file.module) == (split == "heldout"):
            yield Document(text=file.text, origin=f"source:{file.module}")


def _hashed_out(name: str) -> bool:
    return hash_fraction(f"held-out:{name}") < HELDOUT_FRACTION  # with this prefix it is 10 % of docstrings, too
