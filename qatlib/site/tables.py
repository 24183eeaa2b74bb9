"""How pages read a report's tables: through the declarations, so that a renamed table or column always raises an error."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

from qatlib.files import library_hash
from qatlib.judging.published import PublishedError, Table, published
from qatlib.params.sections import ROOT


class OlderReport(PublishedError):
    """A table or column is missing from a report that other code made."""


class Row(dict[str, str]):
    """A row of a table. Reading a column that is not declared, or is missing, raises an error.

    Attributes:
        source: the table's address, relative to the report.
    """

    def __init__(self, values: dict[str, str], report: Path, stage: str, source: str, declared: Table) -> None:
        super().__init__(values)
        self.source, self.declared, self._place = source, declared, (report, stage)

    def __getitem__(self, column: str) -> str:
        if not self.declared.declares(column):
            raise PublishedError(
                f"{self.source}: no column {column!r} is declared; declared are {', '.join(self.declared.known)}"
            )
        if column not in self:
            raise missing(*self._place, f"the column {column!r} of {self.source}")
        return super().__getitem__(column)


def has_run(report: Path, stage: str) -> bool:
    """Whether this stage of a report has finished. A stage writes its provenance at the end."""
    return (report / "provenance" / f"{stage}.json").is_file()


def table(report: Path, stage: str, name: str) -> list[Row]:
    """The rows of a result table; none if the stage has not run, or if its params do not ask for this table.

    Raises:
        PublishedError: the table is not declared, or is missing although the params ask for it.
        OlderReport: the table is missing from a report that other code made.
    """
    declared = published().find(stage, name)
    if (source := address(report, stage, name)) is None:
        return []
    with (report / source).open(newline="", encoding="utf-8") as file:
        return [Row(values, report, stage, source, declared) for values in csv.DictReader(file)]


def address(report: Path, stage: str, name: str) -> str | None:
    """A table's path relative to the report; None if `table` returns no rows because there is no file. Raises as `table`."""
    declared = published().find(stage, name)
    path = f"{declared.folder}/{stage}/{name}.csv"
    if (report / path).is_file():
        return path
    if has_run(report, stage) and declared.due(_provenance(report, stage).get("parameters") or {}):
        raise missing(report, stage, path)
    return None


def missing(report: Path, stage: str, what: str) -> PublishedError:
    """The error to raise if something declared is missing from a report.

    Args:
        what: the missing thing, in words.
    """
    made_by = (_provenance(report, stage).get("code") or {}).get("library_sha256")
    if made_by not in (None, _own_hash()):
        return OlderReport(f"This report was made before the present code, which expects {what}: run {stage} again.")
    return PublishedError(f"{what} is declared, and missing from the report")


def _provenance(report: Path, stage: str) -> dict[str, Any]:
    path = report / "provenance" / f"{stage}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


@cache
def _own_hash() -> str:
    return library_hash(ROOT)
