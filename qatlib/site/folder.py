"""The folder of a report: which files in it a run wrote. All others are a user's, and stay."""

from __future__ import annotations

import re
from pathlib import Path

STAGE_PAGE = re.compile(r"\d\d_\w+\.html")
_WRITTEN = re.compile(
    rf"(index|claims)\.html|{STAGE_PAGE.pattern}|claims\.json|notebooks/\w+\.ipynb|(provenance|headlines)/\w+\.json"
    r"|(results|timing)/\w+/(figures/)?\w[^/]*\.(csv|json|svg|yaml)|(.*/)?\.DS_Store"
)


class ForeignFileError(ValueError):
    """A report's folder holds what no run wrote: one sentence."""


def check_folder(report: Path) -> None:
    """Check that a report may be replaced as a whole.

    Raises:
        ForeignFileError: it is no folder, or holds a file that no run wrote.
    """
    shown = f"{report.parent.name}/{report.name}"
    if report.exists() and not report.is_dir():
        raise ForeignFileError(f"{shown}: is no folder; a report can't be written there; move it away")
    for path in sorted(report.rglob("*")):
        name = path.relative_to(report).as_posix()
        if not _WRITTEN.fullmatch(name) and (path.is_symlink() or not path.is_dir()):
            raise ForeignFileError(f"{shown}: {name} was not written by a run, and a report replaces its folder; move it away")
