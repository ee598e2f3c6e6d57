"""Names keep their promise: an einsum's equation is spelled by the suffixes of its operands and of its result."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gptjax"
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(ROOT.rglob("*.py"))}


def called(node):
    """The dotted name of what a call calls, "" if it has none."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def spelled(node):
    """The letters of an operand: a name's or attribute's suffix, or what use(...) is asked for; None if it has none."""
    if called(node) == "use":
        letters, suffix = node.args[1].value, spelled(node.args[0])
        assert letters == suffix, f"line {node.lineno}: {ast.unparse(node)}"
        return letters
    name = getattr(node, "id", getattr(node, "attr", ""))
    found = re.search(r"_([A-Z1]+)$", name)
    return found and found[1]


CALLS = ("jnp.einsum", "product")


def operands(node):
    """What an einsum multiplies; a product's layout and kind come after its two operands."""
    return node.args[1:3] if called(node) == "product" else node.args[1:]


def einsums(source):
    """(line, equation, letters of the operands, letters of the assigned name or None) of each einsum or product."""
    tree = ast.parse(source)
    results = {
        node.value: spelled(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and len(node.targets) == 1
    }
    return [
        (node.lineno, node.args[0].value, [spelled(operand) for operand in operands(node)], results.get(node))
        for node in ast.walk(tree)
        if called(node) in CALLS and isinstance(node.args[0], ast.Constant)
    ]


def misspelled(source):
    """Lines whose equation differs from the names around it; operands without a suffix are not judged."""
    wrong = []
    for line, equation, operands, result in einsums(source):
        terms, _, out = equation.partition("->")
        named = [(term, name) for term, name in zip(terms.split(","), operands, strict=True) if name]
        if any(term != name for term, name in named) or (result and result != out):
            wrong.append((line, equation, operands, result))
    return wrong


ALIASES = {"optim/muon.py"}  # a matrix times its own transpose needs a second letter for the same dimension


@pytest.mark.parametrize(
    "path",
    [path for path, text in SOURCES.items() if any(f"{call}(" in text for call in CALLS) and path not in ALIASES],
)
def test_einsum_terms_are_the_suffixes_of_their_operands(path):
    assert misspelled(SOURCES[path]) == []


def test_a_misspelled_einsum_is_seen():
    assert misspelled('y_BF = jnp.einsum("BD,DF->BF", x_BD, use(self.w_DF, "DF", dtype))') == []
    assert misspelled('y_BF = jnp.einsum("BD,DF->BF", x_DB, w_DF)')
    assert misspelled('y_FB = jnp.einsum("BD,DF->BF", x_BD, w_DF)')
    assert misspelled('y_BF = product("BD,DF->BF", x_BD, w_FD, spec, matmuls)')
    assert misspelled('y_BF = product("BD,DF->BF", x_BD, w_DF, spec_BTD, matmuls)') == []
    with pytest.raises(AssertionError, match="line 1"):
        misspelled('jnp.einsum("BD,DF->BF", x_BD, use(self.w_FD, "DF", dtype))')


def test_einsums_are_found_where_they_are():
    found = sum(len(einsums(text)) for text in SOURCES.values())
    written = re.compile(r'\b(jnp\.einsum|product)\(\s*"')
    assert found == sum(len(written.findall(text)) for text in SOURCES.values())
    assert found >= 10


@pytest.mark.parametrize(
    ("name", "place"), [("jax.make_mesh", "run/mesh.py"), ("jax.distributed", "run/hosts.py")], ids=str
)
def test_meshes_and_hosts_are_made_in_one_file(name, place):
    users = {
        path
        for path, text in SOURCES.items()
        if any(ast.unparse(node) == name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute))
    }
    assert users <= {place}, users
