"""Settings that were tried, side by side."""

from __future__ import annotations

from typing import Any

import pandas as pd

from qatlib.judging import results
from qatlib.judging.claims import mean_over_precisions
from qatlib.judging.results import Cell

SETTINGS = ["learning_rate", "rank", "passes"]


def tried_table(scores: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Every trial's settings and F1 at every precision, and its paired difference from the first trial at the same precision.

    Returns:
        One row per trial and precision: `model`, `precision`, `w_bits`, `a_bits`, `learning_rate`, `rank`, `passes`, `f1`
        (percent), `f1_change` (points; both with `_low`, `_high`), `n`, `paragraphs`.
    """
    first, rows = scores["model"].iloc[0], []
    for cell in results.cells(scores):
        mine = results.pick(scores, cell)
        f1 = results.mean_of(scores, cell, "f1", **options)
        change = results.paired(scores, cell, Cell(first, cell.precision), "f1", **options)
        row = cell._asdict() | {key: mine[key].iloc[0] for key in ("w_bits", "a_bits", *SETTINGS)}
        rows.append(row | results.intervals({"f1": f1, "f1_change": change}) | {"n": f1.n, "paragraphs": f1.clusters})
    return pd.DataFrame(rows)


def gains_in_words(scores: pd.DataFrame, **options: Any) -> str:
    """F1 points of each trial over the first, mean of all precisions, in words: `faster: +1.2 [−0.3, +2.7]; …`."""
    together = mean_over_precisions(scores)
    first, *others = together["model"].unique()
    found = {other: results.paired(together, Cell(other, "mean"), Cell(first, "mean"), "f1", **options) for other in others}
    return "; ".join(f"{other}: {results.signed(gain.value, gain.low, gain.high)}" for other, gain in found.items())
