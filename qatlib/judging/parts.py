"""What each part of a scheme is worth: two variants that differ in it alone, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pandas as pd

from qatlib.judging import results, stats
from qatlib.judging.results import Cell


class Pair(Protocol):
    """A part, and the names of two models that differ in it alone. `qatlib.studies.ablation.Variant` is one."""

    @property
    def part(self) -> str:
        """The part."""

    @property
    def change(self) -> str:
        """Whether it is added to the plain scheme or removed from the whole one."""

    @property
    def having(self) -> str:
        """The model that has it."""

    @property
    def lacking(self) -> str:
        """The model that does not."""


def worth_table(scores: pd.DataFrame, perplexities: pd.DataFrame, pairs: Sequence[Pair], **options: Any) -> pd.DataFrame:
    """What every part is worth at every precision, paired on the same questions and paragraphs. Above 0 the part helps.

    Returns:
        One row per pair and precision: `part`, `change`, `precision`, `w_bits`, `a_bits`, `gain` (points of F1), `p` (of the
        gain, Holm-corrected within the table), `saved` (divergence from 32 bits, nats per token; both with `_low`, `_high`),
        `n`, `paragraphs` (of the questions).
    """
    rows, widths = [], results.widths(scores)
    for pair in pairs:
        for precision in (c.precision for c in results.cells(scores) if c.model == pair.having):
            having, lacking = Cell(pair.having, precision), Cell(pair.lacking, precision)
            gain = results.paired(scores, having, lacking, "f1", **options)
            saved = results.paired(perplexities, lacking, having, "divergence", **options)
            row = {"part": pair.part, "change": pair.change, "precision": precision, **widths[precision]._asdict()}
            row |= results.interval("gain", gain) | {"p": gain.p} | results.interval("saved", saved)
            rows.append(row | {"n": gain.n, "paragraphs": gain.clusters})
    table = pd.DataFrame(rows)
    return table.assign(p=stats.holm(table["p"].tolist()))
