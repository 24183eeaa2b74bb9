from pathlib import Path

import pytest

from qatlib.site.folder import ForeignFileError, check_folder

REPORTS = Path(__file__).parents[2] / "reports"


@pytest.mark.parametrize("name", ["embedded", "reference"])
def test_what_runs_wrote_may_be_replaced(name: str) -> None:
    check_folder(REPORTS / name)


def test_a_folder_that_is_not_there_or_empty_may_be_replaced(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    check_folder(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["notes.md", ".git/HEAD", "my.html", "notebooks/mine.py", "results/01_build/.hidden.csv", "results/mine.csv", "x/y/z.csv"],
)
def test_what_no_run_wrote_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "reports/quick" / name
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(ForeignFileError, match=f"reports/quick: {name} was not written by a run"):
        check_folder(tmp_path / "reports/quick")


def test_bench_and_files_are_no_reports(tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match="reports/bench: bench.csv was not written"):
        check_folder(REPORTS / "bench")
    (tmp_path / "quick").touch()
    with pytest.raises(ForeignFileError, match="is no folder"):
        check_folder(tmp_path / "quick")
