"""Objects of this machine's standard library, documented or not: modules, classes, functions and methods.

Sources are parsed, never imported; only a fixed list of built-in and extension modules, which have none, is imported.
"""

import ast
import functools
import importlib
import inspect
import os
import sysconfig
import tokenize
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["module", "class", "function", "method"]
_Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Not the library itself: tests, installed packages, the editor, grammar data, demonstrations.
_SKIPPED_FOLDERS = {
    *("test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "pydoc_data", "turtledemo"),
    *("ensurepip", "__pycache__", "__phello__"),
}
_ALIASES = {
    "posixpath": "os.path",
    "posix": "os",
    "nt": "os",
    "_thread": "threading",
    "_io": "io",
    "_pydatetime": "datetime",
}
# Modules that are written in C, wholly or in part, and are safe and quiet to import on every platform that has them.
_IMPORTED = """
array asyncio atexit binascii bisect builtins bz2 cmath codecs collections contextvars csv ctypes datetime decimal errno
faulthandler fcntl functools gc grp hashlib heapq io itertools json locale lzma marshal math mmap opcode operator os
pickle pwd queue random re resource select signal socket sqlite3 ssl statistics string struct symtable sys syslog
termios threading time tracemalloc types unicodedata weakref xml.parsers.expat zlib zoneinfo
"""
_BUILTIN_METHODS = (types.MethodDescriptorType, types.ClassMethodDescriptorType)


@dataclass(frozen=True, kw_only=True)
class DocObject:
    """An object: qualified name, kind, module that defines it, signature and cleaned docstring, "" if it has none.

    The names of built-in objects are bare (`len`, `str.join`); the signature is without self, empty if unknown.
    """

    name: str
    kind: Kind
    module: str
    signature: str
    doc: str


@dataclass(frozen=True, kw_only=True)
class LibraryFile:
    """A source file of the standard library: dotted module name and text."""

    module: str
    text: str


@functools.cache
def library_files() -> tuple[LibraryFile, ...]:
    """The library's source files, sorted by path; none where the distribution omits them."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for path in _library_paths(root):
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue
        names = path.relative_to(root).with_suffix("").parts
        files.append(LibraryFile(module=_public(".".join(names).removesuffix(".__init__")), text=text))
    return tuple(files)


def doc_objects() -> tuple[DocObject, ...]:
    """Every documented object, sources first, then extension modules; one per qualified name."""
    return tuple(item for item in library_objects() if item.doc)


@functools.cache
def library_objects() -> tuple[DocObject, ...]:
    """Every object, documented ones first; of those without documentation only what the sources define."""
    documented: dict[str, DocObject] = {}
    others: dict[str, DocObject] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old library code, deprecated modules
        for file in library_files():
            for item in _parsed(file):
                (documented if item.doc else others).setdefault(item.name, item)
        for module in _IMPORTED.split():
            for item in _imported(module):
                documented.setdefault(item.name, item)
    return (*documented.values(), *(item for name, item in others.items() if name not in documented))


def _library_paths(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS and name.isidentifier())
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py") and name[:-3].isidentifier())


def _public(module: str) -> str:
    head, dot, rest = module.partition(".")
    return _ALIASES.get(head, head) + dot + rest


def _parsed(file: LibraryFile) -> Iterator[DocObject]:
    try:
        tree = ast.parse(file.text)
    except (SyntaxError, ValueError, RecursionError):
        return
    if doc := _doc(ast.get_docstring(tree)):
        yield DocObject(name=file.module, kind="module", module=file.module, signature="", doc=doc)
    yield from _parsed_body(tree.body, file.module, file.module, in_class=False)


def _parsed_body(body: list[ast.stmt], module: str, prefix: str, *, in_class: bool) -> Iterator[DocObject]:
    """Definitions in `body`, those under `if` and `try` too, but not those within functions."""
    for node in body:
        if isinstance(node, _Definition):
            yield from _parsed_definition(node, module, prefix, in_class)
        elif isinstance(node, ast.If | ast.Try):
            handlers = [handler.body for handler in node.handlers] if isinstance(node, ast.Try) else []
            final = node.finalbody if isinstance(node, ast.Try) else []
            for branch in (node.body, *handlers, node.orelse, final):
                yield from _parsed_body(branch, module, prefix, in_class=in_class)


def _parsed_definition(node: _Definition, module: str, prefix: str, in_class: bool) -> Iterator[DocObject]:
    is_class = isinstance(node, ast.ClassDef)
    name = f"{prefix}.{node.name}"
    kind = "class" if is_class else "method" if in_class else "function"
    doc = _doc(ast.get_docstring(node))
    yield DocObject(name=name, kind=kind, module=module, signature=_signature(node, in_class), doc=doc)
    if is_class:
        yield from _parsed_body(node.body, module, name, in_class=True)


def _signature(node: _Definition, in_class: bool) -> str:
    if isinstance(node, ast.ClassDef):
        inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return _signature(inits[0], True) if inits else ""
    arguments = ast.unparse(node.args)
    static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)
    if in_class and not static and (node.args.posonlyargs or node.args.args):
        arguments = arguments.partition(",")[2].strip().removeprefix("/, ").removeprefix("/")
    return f"({arguments})"


def _imported(module: str) -> Iterator[DocObject]:
    try:
        namespace = vars(importlib.import_module(module))
    except ImportError:  # not built on this platform
        return
    if module not in {file.module for file in library_files()} and (doc := _doc(namespace["__doc__"])):
        yield DocObject(name=module, kind="module", module=module, signature="", doc=doc)
    for key, value in sorted(namespace.items()):
        home = _public(getattr(value, "__module__", None) or module)
        if key.startswith("_") or home.removeprefix("_") != module:
            continue
        if isinstance(value, types.BuiltinFunctionType):
            yield from _described(key, "function", module, value)
        elif isinstance(value, type):
            yield from _described(key, "class", module, value)
            for name, member in sorted(vars(value).items()):
                if isinstance(member, _BUILTIN_METHODS) and not name.startswith("_"):
                    yield from _described(f"{key}.{name}", "method", module, member)


def _described(key: str, kind: Kind, module: str, value: Any) -> Iterator[DocObject]:
    doc = _doc(vars(value).get("__doc__") if isinstance(value, type) else value.__doc__)
    if not doc:
        return
    try:
        signature = str(inspect.signature(value))
    except (ValueError, TypeError, AttributeError, NameError):  # it evaluates defaults: 3.13 fails on select.poll
        signature = ""
    for own in ("self", "type"):
        signature = signature.replace(f"({own}, /, ", "(").replace(f"({own}, /)", "()").replace(f"({own}, ", "(")
    name = key if module == "builtins" else f"{module}.{key}"
    yield DocObject(name=name, kind=kind, module=module, signature=signature, doc=doc)


def _doc(text: Any) -> str:
    return inspect.cleandoc(text).strip() if isinstance(text, str) else ""
