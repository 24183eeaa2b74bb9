"""Work as a list of named, independent pieces, each of which ends in one kept table; and the one place that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pandas as pd

from qatlib.model import SwitchableModel
from qatlib.params.schema import Params
from qatlib.precision import Precision

T = TypeVar("T")


class Keeper(Protocol):
    """What a study keeps its results in; `qatlib.run.stage.Stage` is one."""

    params: Params

    def table(self, name: str, compute: Callable[[], pd.DataFrame], published: bool = True) -> pd.DataFrame:
        """The frame that `compute` returns, computed once."""

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Times a block."""

    def checkpoints(self, name: str) -> Path:
        """The path of one training's checkpoints."""


class Piece(NamedTuple):
    """One piece of work: what it is kept as, and a function of nothing that gives the table.

    Pieces do not depend on one another: they give the same tables in any order and in any process.
    """

    name: str
    compute: Callable[[], pd.DataFrame]
    published: bool = True


def run(pieces: Iterable[Piece], keeper: Keeper) -> list[pd.DataFrame]:
    """The table of every piece, in order. A piece that was computed before is read: a killed run has lost one at most."""
    return [keeper.table(piece.name, piece.compute, piece.published) for piece in pieces]


def at_each(
    keeper: Keeper,
    model: SwitchableModel,
    name: str,
    about: Mapping[str, Any],
    at: Sequence[Precision] | Mapping[str, Any],
    measure: Callable[[str], pd.DataFrame],
    published: bool = True,
) -> pd.DataFrame:
    """What is measured of a model at each precision, a piece for each; all of their tables in one frame.

    Args:
        name: of the pieces; each has its precision's name behind it.
        about: `model` and `seed`, columns of the frame.
        at: precisions, or anything that `Configuration.resolve` reads, by its name.
        measure: from a name to a table, while the model stands at that precision.

    Returns:
        The tables with `model`, `precision`, `w_bits` and `a_bits` (of a precision) and `seed` in front.
    """

    def compute(name: str, spec: Any) -> pd.DataFrame:
        with model.at(spec):
            return measure(name)

    specs = at if isinstance(at, Mapping) else {p.name: p for p in at}
    parts = run([Piece(f"{name}_{p.lower()}", partial(compute, p, spec), published) for p, spec in specs.items()], keeper)
    for part, (precision, spec) in zip(parts, specs.items(), strict=True):
        widths = spec._asdict() if isinstance(spec, Precision) else {}
        columns = {"model": about["model"], "precision": precision, **widths, "seed": about["seed"]}
        for place, (column, value) in enumerate(columns.items()):
            part.insert(place, column, value)
    return pd.concat(parts, ignore_index=True)


def spread(items: Sequence[T], n: int | None) -> list[T]:
    """`n` items at equal distances (all if there are no more): neighbours in SQuAD's files are of one article."""
    if n is None or n >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, n).astype(int)]
