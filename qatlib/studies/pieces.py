"""Work as a list of named, independent pieces, each of which ends in one kept table; and the one place that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import pandas as pd

from qatlib.params.schema import Params

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


def spread(items: Sequence[T], n: int | None) -> list[T]:
    """`n` items at equal distances (all if there are no more): neighbours in SQuAD's files are of one article."""
    if n is None or n >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, n).astype(int)]
