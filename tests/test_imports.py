"""What loads what: plain types nothing, nets and search only torch and arrays, each heavyweight by its own door."""

from __future__ import annotations

import ast
import functools
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ameir_merlin

PACKAGE = Path(ameir_merlin.__file__).parent
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(PACKAGE)], "ameir_merlin."))

# Heavyweight -> the files that may import it, at the top or inside a function. A prefix counts for what is below it.
DOORS = {
    "nvtabular": {"data/ops.py", "data/workflow.py"},
    "merlin.dataloader": {"data/loader.py"},
    "merlin.io": {"data/loader.py", "data/workflow.py"},
    "merlin.systems": {"serve/merlin.py"},
    "merlin.models": {"merlin.py"},
    "merlin": {"data/ops.py", "data/workflow.py", "data/loader.py", "serve/merlin.py", "merlin.py"},
    "dask": {"data/ops.py", "data/workflow.py", "data/loader.py", "data/cluster.py"},
    "dask_cuda": {"data/cluster.py"},
    "distributed": {"data/cluster.py"},
    "pandas": {"data/ops.py", "data/workflow.py", "data/loader.py"},
    "cudf": {"data/ops.py", "data/workflow.py", "data/loader.py"},
    "cupy": {"data/ops.py"},
    "lightning": {"run/launch.py"},
    "tritonclient": {"serve/client.py"},
    "pytriton": set(),
    "triton_python_backend_utils": {f"serve/backends/{name}.py" for name in ("model", "preprocess", "top_k")},
    "pydantic": {"config.py"},
    "typer": {"cli.py"},
    "rich": {"outcome.py", "display.py"},
    "sklearn": set(),
    "optuna": {"tune.py"},
}


def below(*names: str) -> list[str]:
    """The modules `names` and all below them."""
    found = [m for m in MODULES if any(m == n or m.startswith(f"{n}.") for n in (f"ameir_merlin.{n}" for n in names))]
    assert found
    return found


def loaded(modules: list[str]) -> set[str]:
    """The top-level names of what a fresh interpreter has loaded after it imported `modules`, its own apart."""
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name.partition(".")[0] for name in done.stdout.split()}
    return names - set(sys.stdlib_module_names) - {"ameir_merlin", "__main__"}


@pytest.fixture(scope="module")
def nothing() -> set[str]:
    """What an interpreter has loaded in any case."""
    return loaded([])


def test_plain_types_load_the_standard_library_alone(nothing):
    plain = ["ameir_merlin", *below("errors", "files", "progress", "schema", "seeds", "space")]
    assert loaded(plain) - nothing == set()


def test_nets_training_and_search_load_torch_and_arrays_alone(nothing):
    modules = below("batch", "ranks", "nn", "models", "train", "search", "data.parquet")
    assert len(modules) > 60
    found = loaded(modules) - nothing
    assert {"torch", "numpy", "pyarrow"} <= found
    # torch brings some along; those are there wherever it is.
    assert found - loaded(["torch", "numpy", "pyarrow"]) == set()


def test_imports_load_nothing_heavy_before_it_is_needed_and_do_no_work(tmp_path):
    """Every module but the doors themselves: no heavyweight, no file, and nothing of the process is changed."""
    doors = {f"ameir_merlin.{name}" for name in ("data.ops", "data.workflow", "data.loader", "merlin")}
    modules = [m for m in MODULES if m not in doors and ".backends." not in m]  # those run inside Triton alone
    code = (
        "import importlib, json, os, random, sys\n"
        "def state(): return [os.getcwd(), list(sys.argv), random.getstate()[1], dict(os.environ)]\n"
        "before = state()\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps([before == state(), os.listdir(), list(sys.modules)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    unchanged, files, names = json.loads(done.stdout)
    assert unchanged
    assert files == []
    assert done.stderr == ""
    assert {name.partition(".")[0] for name in names} & set(DOORS) == {"pydantic", "typer"}


@functools.cache
def imports(file: Path) -> frozenset[str]:
    """The absolute names that `file` imports anywhere, but for types."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in node.body
        for inner in ast.walk(part)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@pytest.mark.parametrize("name", DOORS)
def test_each_heavyweight_comes_in_by_its_door(name):
    users = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if any(i == name or i.startswith(f"{name}.") for i in imports(file))
    }
    assert users <= DOORS[name]


def test_the_package_knows_nothing_of_what_uses_it():
    for file in PACKAGE.rglob("*.py"):
        assert not {i.partition(".")[0] for i in imports(file)} & {"workflows", "benchmarks", "tests"}, file
