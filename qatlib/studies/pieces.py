"""Work as a list of named, independent pieces. Each piece gives one kept table. Only this module runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd

from qatlib.model import SwitchableModel
from qatlib.params.schema import Params
from qatlib.precision import Precision


class Keeper(Protocol):
    """Where a study keeps its results. `qatlib.run.stage.Stage` is one."""

    params: Params

    def table(self, name: str, compute: Callable[[], pd.DataFrame], published: bool = True) -> pd.DataFrame:
        """The frame that `compute` returns. It is computed only once."""

    def settled(self, name: str, choose: Callable[[], str]) -> str:
        """What `choose` gave when it was first asked for, in this stage or upstream of it."""

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Measure the time of a `with` block."""

    def checkpoints(self, name: str) -> Path:
        """The path of one training's checkpoints."""


class Piece(NamedTuple):
    """One piece of work: the name it is kept under, and a function without arguments that gives the table.

    Pieces do not depend on one another: they give the same tables in any order and in any process.
    """

    name: str
    compute: Callable[[], pd.DataFrame]
    published: bool = True


def run(pieces: Iterable[Piece], keeper: Keeper) -> list[pd.DataFrame]:
    """The table of every piece, in order. A finished piece is read from disk, so a killed run loses at most one piece."""
    return [keeper.table(piece.name, piece.compute, piece.published) for piece in pieces]


def at_each(
    keeper: Keeper,
    model: SwitchableModel,
    kind: str,
    label: str,
    seed: int,
    at: Sequence[Precision] | Mapping[str, Any],
    measure: Callable[[str], pd.DataFrame],
    published: bool = True,
) -> pd.DataFrame:
    """Measure a model at each precision, one piece per precision, and return all tables in one frame.

    Args:
        kind: what is measured, such as `scores`. A piece is called `<kind>_<label>_<precision>`.
        label: what the model is called, in the column `model`.
        seed: of the model's training, in the column `seed`.
        at: precisions, or anything that `Configuration.resolve` reads, by its name.
        measure: maps a name to a table, while the model is at that precision.

    Returns:
        The tables, with `model`, `precision`, `w_bits` and `a_bits` (for a precision) and `seed` as first columns.
    """

    def compute(name: str, spec: Any) -> pd.DataFrame:
        with model.at(spec):
            return measure(name)

    specs = at if isinstance(at, Mapping) else {p.name: p for p in at}
    parts = run([Piece(f"{kind}_{label}_{p.lower()}", partial(compute, p, spec), published) for p, spec in specs.items()], keeper)
    for part, (precision, spec) in zip(parts, specs.items(), strict=True):
        widths = spec._asdict() if isinstance(spec, Precision) else {}
        columns = {"model": label, "precision": precision, **widths, "seed": seed}
        for place, (column, value) in enumerate(columns.items()):
            part.insert(place, column, value)
    return pd.concat(parts, ignore_index=True)
