"""Which package may import which: one table, checked on the source without running it."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gptjax"
EVERYTHING = {"nn", "losses", "optim", "model", "train", "generate", "data", "scaling", "eval", "run", "serve", "cli"}
# Package -> packages it may import besides itself and the modules that stand alone, at the top.
ALLOWED = {
    "nn": set(),
    "losses": set(),
    "optim": set(),
    "data": set(),
    "model": {"nn"},
    "scaling": {"model"},
    "generate": {"nn"},
    "train": {"losses"},
    "train/rollout.py": {"losses", "nn", "generate"},
    "train/group_rollout.py": {"losses", "generate"},
    "eval": {"losses", "generate", "data"},
    "run": EVERYTHING - {"serve", "cli"},
    "serve": EVERYTHING - {"cli"},
}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imports(path):
    """Full names of all that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def forbidden(path, names):
    package = path.parts[0]
    allowed = ALLOWED.get(path.as_posix(), ALLOWED.get(package, set())) | {package}
    within = {name.split(".")[1] for name in names if name.startswith("gptjax.")}
    return sorted(within & EVERYTHING - allowed)


@pytest.mark.parametrize("path", [path for path in FILES if len(path.parts) > 1], ids=str)
def test_packages_import_only_what_lies_below_them(path):
    assert path.parts[0] in ALLOWED, f"package {path.parts[0]} is not in the table"
    assert forbidden(path, imports(path)) == []


@pytest.mark.parametrize(
    "name", sorted(path.name for path in ROOT.glob("*.py") if path.stem not in ("cli", "__main__"))
)
def test_modules_that_stand_alone_import_no_package(name):
    assert forbidden(Path(name), imports(Path(name))) == []


def test_a_forbidden_import_is_seen():
    # losses -> nn is not in the table, train/rollout.py -> nn is, train/ppo.py -> nn is not.
    assert forbidden(Path("losses/returns.py"), {"gptjax.nn.norm.rms_norm"}) == ["nn"]
    assert forbidden(Path("train/rollout.py"), {"gptjax.nn.norm.rms_norm"}) == []
    assert forbidden(Path("train/ppo.py"), {"gptjax.nn.norm.rms_norm"}) == ["nn"]
    assert forbidden(Path("run/driver.py"), {"gptjax.serve"}) == ["serve"]


def test_no_imports_go_round_in_a_circle():
    modules = {".".join(("gptjax", *path.with_suffix("").parts)): path for path in FILES}
    graph = {module: modules.keys() & parents(imports(path)) for module, path in modules.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules)  # raises on a circle


def parents(names):
    """The names and the modules that they may be in."""
    return names | {name.rpartition(".")[0] for name in names}


def users(library):
    return {path.as_posix() for path in FILES if any(name.split(".")[0] == library for name in imports(path))}


def test_checkpoints_alone_know_orbax():
    assert users("orbax") == {"run/checkpoint.py", "run/restore.py"}


def test_models_alone_know_flax():
    assert {Path(path).parts[0] for path in users("flax")} == {"model"}


def test_a_loss_loads_neither_orbax_nor_flax():
    code = "import sys, gptjax.losses.returns; print([name for name in ('orbax', 'flax') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"
