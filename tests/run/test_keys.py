"""What changes a stage's keys: what it computes with, and not how that is worded."""

import json
import os
import re
import shutil
import time
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


def test_another_shifted_file_costs_no_results_and_makes_the_page_anew(root: Path) -> None:
    path = root / "shifted.json"
    path.write_text("1")
    before = Run("smoke", [f"adversarial.shifted=[{path}]"], root).keys
    path.write_text("2")
    after = Run("smoke", [f"adversarial.shifted=[{path}]"], root).keys
    assert {key.results for key in before.values()} == {key.results for key in after.values()}
    assert [stage for stage in STAGES if before[stage] != after[stage]] == ["05_adversarial"]


# -- clocks ------------------------------------------------------------------------------------------------------------

TOMORROW = time.time() + 86_400


@pytest.fixture
def finished(root: Path) -> Run:
    """A run whose stages are done and whose report is published, as far as time stamps and marks tell."""
    run = Run("smoke", root=root)
    run.sync()
    for stage in STAGES:
        run.mark_done(stage)
    run.report.mkdir(parents=True)
    run.mark_published()
    return run


def order(run: Run) -> list[int]:
    """Time stamps of keys and marks, such that make has nothing to do if none is older than one before it."""
    done = [max(stamp(run, f"{stage}/key"), stamp(run, f"{stage}/done")) for stage in STAGES]
    return [max(*done, stamp(run, "report.key")), stamp(run, "published")]


def stamp(run: Run, name: str) -> int:
    return (run.directory / name).stat().st_mtime_ns


@pytest.mark.parametrize("name", ["published", "report.key", "01_build/key", "01_build/done", "05_adversarial/done"])
def test_a_clock_that_was_wrong_once_makes_nothing_again(finished: Run, name: str) -> None:
    os.utime(finished.directory / name, (TOMORROW, TOMORROW))
    for _ in range(2):
        finished.sync()
        for stage in STAGES:
            assert stamp(finished, f"{stage}/key") <= stamp(finished, f"{stage}/done")
        assert order(finished) == sorted(order(finished)) and max(order(finished)) < TOMORROW * 10**9
    before = order(finished)
    finished.sync()
    assert order(finished) == before


def test_results_set_aside_by_a_wrong_clock_are_the_oldest(root: Path) -> None:
    def prepare(seed: int) -> Run:
        run = Run("smoke", [f"seed={seed}"], root)
        run.prepare("01_build")
        (run.directory / "01_build/memo").mkdir(parents=True, exist_ok=True)
        (run.directory / "01_build/memo/a.json").write_text(str(seed))
        return run

    aside = [prepare(seed).directory / "01_build/.superseded" for seed in (1, 2, 3)][0]
    for folder in aside.iterdir():
        os.utime(folder, (TOMORROW, TOMORROW))
    prepare(4)
    assert "3" in {(folder / "memo/a.json").read_text() for folder in aside.iterdir()}
