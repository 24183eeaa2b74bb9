"""Every table that a notebook publishes: its name, its columns and their units, declared once in `tables/*.yaml`.

`Stage` checks what it writes against the declarations. Code that reads a report uses the same declarations. So a renamed table
or column fails where it was renamed. `python -m qatlib.judging.published > docs/tables.md` writes them as a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qatlib.files import read_cells
from qatlib.params.yaml import read_yaml

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).parent / "tables"

BOUNDS = ("", "_low", "_high")
"""Endings of the three columns of an interval."""

_COLUMN = re.compile(r"(±?)([^][?±]+?)(?: \[(.+)\])?(\??)")

_PLACES = {"precision": r"(?:\d+|w\d+a\d+)", "base": r"(?:\d+|w\d+a\d+)", "budget": r"[\d-]+"}
"""What each `{place}` in a name matches. Any other place matches all characters that a name may have."""


class PublishedError(ValueError):
    """A table or column is not declared, or is declared and missing. The message says where, what, and what is allowed."""


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", name)
    return re.compile("".join(_PLACES.get(p, "[a-z0-9_-]+") if i % 2 else re.escape(p) for i, p in enumerate(parts)))


@dataclass(frozen=True)
class Column:
    """One declared column, or the three of an interval."""

    name: str
    """If it contains `{precision}`, it stands for any number of columns."""
    unit: str
    interval: bool = False
    optional: bool = False

    @property
    def several(self) -> bool:
        """Whether the name is a pattern."""
        return "{" in self.name

    @property
    def names(self) -> list[str]:
        """The columns of the file, or their pattern."""
        return [self.name + bound for bound in BOUNDS] if self.interval else [self.name]


@dataclass(frozen=True)
class Table:
    """One declared table, or all tables whose names match a pattern."""

    name: str
    about: str
    columns: tuple[Column, ...]
    when: str = ""
    """The part of the params that the table needs, such as `cpt.equal_bitops`."""
    only: str = ""
    """When the table is made, in words, if no single part of the params decides it."""
    measured: bool = False
    """Whether its folder is `timing/` instead of `results/`."""

    @property
    def folder(self) -> str:
        """The folder of its file in a report, above the stage."""
        return "timing" if self.measured else "results"

    @cached_property
    def known(self) -> dict[str, Column]:
        """Column name in a file, or its pattern → declared column."""
        return {name: column for column in self.columns for name in column.names}

    @property
    def scored(self) -> bool:
        """Whether it holds scores of one evaluation: one row per question or paragraph."""
        return "paragraph" in self.known and not {"f1", "nll"}.isdisjoint(self.known) and "attack" not in self.known

    @property
    def detailed(self) -> bool:
        """Whether it has one row per question, paragraph or training step, too many to show."""
        return not {"paragraph", "step"}.isdisjoint(self.known)

    def declares(self, column: str) -> bool:
        """Whether a file of this table may have a column."""
        return self.unit(column) is not None

    def unit(self, column: str) -> str | None:
        """The unit of a column of a file; None if it is not declared."""
        found = self.known.get(column) or next(
            (c for c in self.columns if c.several and _pattern(c.name).fullmatch(column)), None
        )
        return found.unit if found else None

    def read(self, path: Path) -> pd.DataFrame:
        """The rows of a file of this table: text as it was written, whatever it spells, and numbers. A missing number is NaN."""
        frame = read_cells(path)
        for name, column in frame.items():
            if (unit := self.unit(str(name))) == "yes/no":
                frame[name] = column == "True"
            elif unit not in ("text", None):
                whole = column.str.fullmatch(r"[-+]?\d+").all()
                frame[name] = column.astype("int64") if whole else column.replace("", "nan").astype("float64")
        return frame

    def due(self, params: Mapping[str, Any]) -> bool:
        """Whether a run with these params must contain the table."""
        value: Any = params
        for key in self.when.split(".") if self.when else ():
            value = value.get(key) if isinstance(value, Mapping) else None
        return not self.only and (not self.when or bool(value))

    def faults(self, columns: Iterable[str]) -> list[str]:
        """What is wrong with the columns of a file, in words."""
        given = [*columns]
        missing = [name for name, c in self.known.items() if not (c.optional or c.several or name in given)]
        unknown = [name for name in given if not self.declares(name)]
        found = {"lacks": missing, "has, undeclared,": unknown, "has twice": sorted({n for n in given if given.count(n) > 1})}
        return [f"{what} {', '.join(map(repr, names))}" for what, names in found.items() if names]


class Declarations:
    """Declared tables by stage.

    Args:
        tables: by stage. An exact name has priority over a pattern, and an earlier pattern over a later one.
    """

    def __init__(self, tables: Mapping[str, Iterable[Table]]) -> None:
        self.tables = {stage: tuple(of_stage) for stage, of_stage in tables.items()}

    def declares(self, stage: str, name: str) -> bool:
        """Whether a stage may publish a table."""
        return self._found(stage, name) is not None

    def _found(self, stage: str, name: str) -> Table | None:
        tables = self.tables.get(stage, ())
        exact = (table for table in tables if table.name == name)
        return next(chain(exact, (t for t in tables if _pattern(t.name).fullmatch(name))), None)

    def find(self, stage: str, name: str) -> Table:
        """The declaration of a table.

        Raises:
            PublishedError: there is none.
        """
        if (found := self._found(stage, name)) is None:
            close = get_close_matches(name, [table.name for table in self.tables.get(stage, ())])
            allowed = f"close to it are {', '.join(close)}" if close else "docs/tables.md lists what is declared"
            raise PublishedError(f"{stage}: no table {name!r} is declared in qatlib/judging/tables/{stage}.yaml; {allowed}")
        return found

    def check(self, stage: str, name: str, columns: Iterable[str], measured: bool = False) -> None:
        """Check what is about to be published.

        Args:
            measured: whether it goes to `timing/`.

        Raises:
            PublishedError: the table is not declared, is declared for the other folder, or has other columns than declared.
        """
        table = self.find(stage, name)
        if table.measured != measured:
            raise PublishedError(f"{stage}: table {name!r} is declared for {table.folder}/ alone")
        if faults := table.faults(columns):
            raise PublishedError(f"{stage}: table {name!r} {', '.join(faults)}; declared are {', '.join(table.known)}")


def read_tables(tables: Mapping[str, Any], units: Mapping[str, str], groups: Mapping[str, str]) -> Iterator[Table]:
    """The tables declared in `tables/*.yaml`.

    Args:
        units: the unit of each column.
        groups: lists of columns, by name.

    Raises:
        PublishedError: a column without a unit.
    """
    for name, given in tables.items():
        columns = tuple({column.name: column for column in _columns(given["columns"], units, groups)}.values())
        if bare := [column.name for column in columns if not column.unit]:
            raise PublishedError(f"table {name!r}: no unit is declared for {', '.join(bare)}")
        yield Table(name, columns=columns, **{key: value for key, value in given.items() if key not in ("columns", "stages")})


def _columns(text: str, units: Mapping[str, str], groups: Mapping[str, str]) -> Iterator[Column]:
    for part in text.split(", "):
        if part.startswith("$"):
            yield from _columns(groups[part[1:]], units, groups)
        elif match := _COLUMN.fullmatch(part):
            interval, name, unit, optional = match.groups()
            yield Column(name, unit or units.get(name, ""), bool(interval), bool(optional))
        else:
            raise PublishedError(f"{part!r} is no column; a column is 'x', '±x', 'x [unit]' or 'x?'")


def _read(path: Path) -> Any:
    return read_yaml(path.read_text(encoding="utf-8"), path.name)


@cache
def published() -> Declarations:
    """The tables of the five notebooks."""
    common = _read(FOLDER / "common.yaml")
    units = {column: unit for unit, columns in common["units"].items() for column in columns.split(", ")}
    tables: dict[str, list[Table]] = {}
    for path in sorted(FOLDER.glob("[0-9]*.yaml")):
        stage = path.stem
        shared = {name: given for name, given in common["tables"].items() if stage in given["stages"].split(", ")}
        tables[stage] = [*read_tables(_read(path) | shared, units, common["groups"])]
    return Declarations(tables)


def as_markdown(declared: Declarations) -> str:
    """The declarations as a page."""
    lines = ["# Published tables", "", *_INTRODUCTION.strip().splitlines()]
    for stage, tables in declared.tables.items():
        lines += ["", f"## {stage}", "", "| table | what it holds | columns |", "| --- | --- | --- |"]
        lines += [f"| {_named(table)} | {_described(table)} | {_spelled(table.columns)} |" for table in tables]
    return "\n".join(lines) + "\n"


_INTRODUCTION = """
A notebook publishes its tables as `results/<stage>/<name>.csv` of the report, and what it measures of the machine as
`timing/<stage>/<name>.csv`. `{model}` and the like in a name stand for what varies. `±f1` stands for three columns: `f1` and
the ends of its interval, `f1_low` and `f1_high`. A column in brackets may be missing. Reports of older code may have other
columns.

`python -m qatlib.judging.published > docs/tables.md` writes this page from `qatlib/judging/tables`.
"""


def _named(table: Table) -> str:
    return f"`{table.name}`" + (" (`timing/`)" if table.measured else "")


def _described(table: Table) -> str:
    made = f"where `{table.when}` is set" if table.when else table.only
    return table.about + (f" Made {made}." if made else "")


def _spelled(columns: Iterable[Column]) -> str:
    """Columns by unit, `percent: ±f1, ±em`."""
    by_unit: dict[str, list[str]] = {}
    for column in columns:
        text = f"`{'±' if column.interval else ''}{column.name}`"
        by_unit.setdefault(column.unit, []).append(f"[{text}]" if column.optional else text)
    return "; ".join(f"{unit}: {', '.join(names)}" for unit, names in by_unit.items())


if __name__ == "__main__":
    print(as_markdown(published()), end="")
