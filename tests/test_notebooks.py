"""What a notebook must be to be committed."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from qatlib.run.stages import STAGES
from tests.runs import copy, finish, start

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 12


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_there_is_one_a_stage() -> None:
    assert tuple(path.stem for path in NOTEBOOKS) == STAGES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_without_outputs(self, path: Path) -> None:
        for cell in cells(path):
            assert not cell["outputs"], source(cell)
            assert cell["execution_count"] is None, source(cell)

    def test_kernel(self, path: Path) -> None:
        kernel = json.loads(path.read_text())["metadata"]["kernelspec"]
        assert (kernel["name"], kernel["language"]) == ("python3", "python")

    def test_one_cell_of_literal_parameters(self, path: Path) -> None:
        tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1
        values = {}
        for line in ast.parse(source(tagged[0])).body:
            assert isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name), ast.unparse(line)
            values[line.targets[0].id] = ast.literal_eval(line.value)
        assert values == {"profile": "quick", "overrides": []}

    def test_makes_its_stage(self, path: Path) -> None:
        assert sum(f'Stage("{path.stem}", profile, overrides)' in source(cell) for cell in cells(path)) == 1

    def test_no_functions_and_short_cells(self, path: Path) -> None:
        for cell in cells(path):
            assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(ast.parse(source(cell))))
            assert len(source(cell).splitlines()) <= LONGEST_CELL, source(cell)

    def test_begins_with_its_title(self, path: Path) -> None:
        assert source(cells(path, "markdown")[0]).startswith("# ")


def twice(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with every code cell, but the one of parameters, followed by itself."""
    found = []
    for cell in notebook["cells"]:
        found.append(cell)
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            found.append(cell | {"id": f"{cell['id']}-again"})
    return notebook | {"cells": found}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository."""
    return copy(tmp_path_factory.mktemp("once"))


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in whose notebooks every cell runs twice in a row."""
    root = copy(tmp_path_factory.mktemp("doubled"))
    for path in (root / "notebooks").glob("*.ipynb"):
        path.write_text(json.dumps(twice(json.loads(path.read_text()))))
    return root


def shown(root: Path, stage: str) -> dict[str, bytes]:
    """A stage's result files and headlines."""
    folder = root / "runs" / "smoke" / stage
    files = [folder / "headlines.json", *sorted((folder / "results").rglob("*"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_cell_may_run_twice_in_a_row(stage: str, once: Path, doubled: Path) -> None:
    """Nothing is changed by it: no table, record, figure or headline."""
    for process in [start(root, f"runs/smoke/{stage}/done") for root in (once, doubled)]:
        finish(process)
    expected, found = shown(once, stage), shown(doubled, stage)
    assert len(expected) > 20 and sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
