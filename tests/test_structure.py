"""The shape of the package: which folder may import which, no cycles, short modules, one name for one thing."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qatlib"
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
LONGEST = 320
ALLOWED = {
    "library": {"library"},
    "params": {"library", "params"},
    "studies": {"library", "params", "studies"},
    "judging": {"library", "params", "studies", "judging"},
    "site": {"library", "params", "judging", "site", "run"},
    "run": {"library", "params", "judging", "site", "run"},
}
"""What each folder may import; `qa` and `attacks` belong to the library."""


def folder(module: str) -> str:
    name = module.split(".")[1]
    return name if name in ALLOWED else "library"


def imported(path: Path) -> Iterator[str]:
    """The package's modules that a module imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from inside or {node.module} & MODULES.keys()


GRAPH = {module: set(imported(path)) for module, path in MODULES.items()}


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith("__init__")])
def test_a_module_imports_what_its_folder_may(module):
    assert {folder(other) for other in GRAPH[module]} <= ALLOWED[folder(module)]


def test_the_site_knows_of_the_engine_only_its_stages():
    assert {m for module in MODULES if folder(module) == "site" for m in GRAPH[module] if folder(m) == "run"} == {
        "qatlib.run.stages"
    }


def test_there_is_no_cycle():
    waiting = {module: set(others) for module, others in GRAPH.items()}
    while leaves := [module for module, others in waiting.items() if not others]:
        for leaf in leaves:
            del waiting[leaf]
        for others in waiting.values():
            others.difference_update(leaves)
    assert not waiting


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_a_module_is_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST


def test_no_two_classes_share_a_name():
    trees = (ast.parse(path.read_text()).body for path in MODULES.values())
    names = Counter(node.name for body in trees for node in body if isinstance(node, ast.ClassDef) and node.name[0] != "_")
    assert not {name for name, count in names.items() if count > 1}
