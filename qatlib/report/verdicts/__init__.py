"""From scores to verdicts on the studies' claims, one module a notebook: each names the effects that a claim says are above 0.

The rule is `qatlib.claims.verdict`; what the claims say is in `qatlib.report.verdicts.catalog`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from qatlib import claims, results
from qatlib.claims import MARGIN
from qatlib.report.verdicts.catalog import CLAIMS
from qatlib.stats import Estimate

COLUMNS = ["claim", "says", "effect", "value", "value_low", "value_high", "n", "seeds", "table", "verdict"]


@dataclass(frozen=True)
class Effect:
    """Something that a claim says is above 0."""

    name: str
    found: Estimate
    table: str
    """The result table whose figures it is made of."""


def verdict_table(
    found: Mapping[str, Sequence[Effect]], untested: str, margins: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """The verdict on every claim, with the effects it rests on.

    Args:
        found: by claim; one without effects could not be tested.
        untested: why not, for those.
        margins: of `qatlib.claims.verdict`, in the unit of a claim's effects; 1 for claims that are not named.

    Returns:
        One row an effect: `claim`, `says`, `effect`, `value` with `_low` and `_high` (above 0 is as the claim has it), `n`,
        `seeds`, `table`, `verdict` (the claim's).
    """
    rows: list[dict[str, Any]] = []
    for claim, effects in found.items():
        about, margin = CLAIMS[claim], (margins or {}).get(claim, MARGIN)
        said = claims.verdict([e.found for e in effects], about_training=about.about_training, margin=margin)
        common = {"claim": claim, "says": about.says, "verdict": said}
        for e in effects:
            figures = results.interval("value", e.found) | {"n": e.found.n, "seeds": e.found.seeds}
            rows.append(common | figures | {"effect": e.name, "table": e.table})
        if not effects:
            rows.append(common | {"effect": untested, "n": 0, "seeds": 0, "table": ""})
    return pd.DataFrame(rows, columns=COLUMNS)


def shifted(e: Estimate, by: float) -> Estimate:
    """An estimate with a constant added."""
    return replace(e, value=e.value + by, low=e.low + by, high=e.high + by)


def room(e: Estimate, limit: float) -> Estimate:
    """How far an estimate stays below a limit."""
    return replace(e, value=limit - e.value, low=limit - e.high, high=limit - e.low)


def mean_over_precisions(scores: pd.DataFrame, metric: str = "f1") -> pd.DataFrame:
    """Scores of each question averaged over a model's precisions, as rows whose `precision` is `mean`."""
    keys = ["model", "seed", "id", "paragraph"]
    return scores.groupby(keys, sort=False, as_index=False)[metric].mean().assign(precision="mean")
