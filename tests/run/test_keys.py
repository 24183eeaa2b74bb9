"""What changes a stage's keys: what it computes with, and not how that is worded."""

import json
import re
import shutil
from pathlib import Path

import pytest

from qatlib.run.keys import Run
from qatlib.run.stages import STAGES

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the tree."""
    for name in ("qatlib", "notebooks", "params"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "constraints.txt", tmp_path)
    return tmp_path


def results(root: Path) -> dict[str, str]:
    """The results key of every stage."""
    return {stage: key.results for stage, key in Run("smoke", root=root).keys.items()}


def test_new_words_change_no_results(root: Path) -> None:
    before = results(root)
    for path in (root / "qatlib").rglob("*.py"):
        text = path.read_text()
        text = re.sub(r'^"""', '"""Reworded. ', text)  # a module's docstring
        text = re.sub(r'(?m)^(\s+)"""(?=\w)', r'\1"""Reworded: ', text)  # those of classes, functions and attributes
        path.write_text(re.sub(r"(?m)^(def |class )", r"# A comment.\n\n\1", text))
    for path in (root / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text())
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = ["Other words.\n"]
            elif "show" in cell["metadata"].get("tags", []):
                cell["source"] = ['stage.show(table, "table", "Another caption")']
            elif "parameters" not in cell["metadata"].get("tags", []):
                cell["source"] = ["# A comment.\n", *cell["source"]]
        path.write_text(json.dumps(notebook))
    assert results(root) == before


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("quantizer.py", list(STAGES)),
        ("sensitivity.py", ["03_sensitivity_heatmaps"]),
        ("landscape.py", ["04_cpt"]),
        ("attacks/words.py", ["05_adversarial"]),
        ("studies/deployment.py", ["02_switchable_train", "03_sensitivity_heatmaps"]),  # the third goes on from the second
        ("judging/stats.py", []),
        ("site/show.py", []),
        ("__init__.py", []),
    ],
)
def test_a_changed_constant_changes_the_stages_that_compute_with_it(root: Path, module: str, expected: list[str]) -> None:
    before = results(root)
    path = root / "qatlib" / module
    path.write_text(path.read_text() + "\nANOTHER = 1\n")
    assert [stage for stage, key in results(root).items() if key != before[stage]] == expected


def test_params_change_the_stages_that_read_them(root: Path) -> None:
    before = results(root)
    after = {stage: key.results for stage, key in Run("smoke", ["cpt.cycles=1"], root).keys.items()}
    assert [stage for stage in STAGES if after[stage] != before[stage]] == ["04_cpt"]
