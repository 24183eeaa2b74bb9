"""From scores to verdicts on the studies' claims, one module per notebook. Each gives figures and what a claim says about them.

The rule is `qatlib.judging.rule.verdict`. The text of the claims is in `qatlib.judging.claims.catalog`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import f

from qatlib.judging import results
from qatlib.judging import rule as claims
from qatlib.judging.claims.catalog import CLAIMS
from qatlib.judging.published import PublishedError, published
from qatlib.judging.rule import MARGIN
from qatlib.judging.stats import Estimate

COLUMNS = ["claim", "verdict", "says", "effect", "must_be", "value", "value_low", "value_high", "n", "seeds", "margin", "table"]


@dataclass(frozen=True)
class Effect:
    """A figure that lies above or below a bound if the claim is true."""

    name: str
    found: Estimate
    table: str
    """The result table that the figure is computed from."""
    above: float = 0.0
    below: float | None = None
    """Upper bound, used instead of `above`."""
    margin: float = MARGIN
    """Distance beyond the bound that would matter, in the figure's unit; 0 if the bound already includes it."""

    @property
    def must_be(self) -> str:
        """What the claim says about the figure."""
        return f"> {self.above:.4g}" if self.below is None else f"< {self.below:.4g}"

    @property
    def judged(self) -> Estimate:
        """Distance from the bound; positive values agree with the claim."""
        return self.found.above(self.above) if self.below is None else self.found.below(self.below)


def verdict_table(found: Mapping[str, Sequence[Effect] | str], undermined: Collection[str] = ()) -> pd.DataFrame:
    """The verdict on every claim, with the effects it rests on.

    Args:
        found: for each claim its effects (at least one), or a text that says why it could not be tested.
        undermined: claims that can't be reproduced here, whatever their effects, because the test was too weak.

    Returns:
        One row per effect: `claim`, `says`, `effect`, `must_be` (what the claim says, such as `> 95`), `value` with
        `_low` and `_high`, `margin`, `n`, `seeds`, `table`, `verdict` (the claim's).

    Raises:
        PublishedError: an effect names a table that no stage of its claim publishes.
    """
    rows: list[dict[str, Any]] = []
    for claim, effects in found.items():
        about, known = CLAIMS[claim], [] if isinstance(effects, str) else effects
        said = _verdict(known, about.about_training)
        if said == "reproduced" and claim in undermined:
            said = "undecided"
        common = {"claim": claim, "says": about.says, "verdict": said if known else "not tested"}
        for e in known:
            if not any(published().declares(stage, e.table) for stage in about.stages):
                raise PublishedError(f"{claim}: no table {e.table!r} is declared for {' or '.join(about.stages)}")
            figures = results.interval("value", e.found) | {"n": e.found.n, "seeds": e.found.seeds}
            rows.append(common | figures | {"effect": e.name, "must_be": e.must_be, "margin": e.margin, "table": e.table})
        if not known:
            rows.append(common | {"effect": effects, "must_be": "", "n": 0, "seeds": 0, "table": ""})
    return pd.DataFrame(rows, columns=COLUMNS)


def in_parts(effects: Sequence[Effect], parts: int, untested: str, about_training: bool = True) -> Sequence[Effect] | str:
    """The effects of a claim in parts, or why it could not be tested. Some parts alone can refute it but not confirm it."""
    refuted = _verdict(effects, about_training) == "not reproduced"
    return effects if len(effects) == parts or refuted else untested


def _verdict(effects: Sequence[Effect], about_training: bool) -> claims.Verdict:
    return claims.verdict([e.judged for e in effects], about_training=about_training, margin=[e.margin for e in effects])


def spreads_wider(name: str, there: pd.DataFrame, beside: pd.DataFrame, **options: Any) -> list[Effect]:
    """Ratio of the spread of mean F1 over training seeds in one frame of scores to that in another.

    With several models, the variances within each model are pooled. The interval is the F interval for a ratio of variances
    of normal figures. To exclude 1, the ratio of variances must be 39 with three trainings of one model, 3.3 with six models.

    Returns:
        One effect; none if there is only one training, or no spread.
    """
    seeds, models = there["seed"].nunique(), there["model"].nunique()
    spread = [frame.groupby(["model", "seed"])["f1"].mean().groupby("model").var().mean() ** 0.5 for frame in (there, beside)]
    if seeds < 2 or beside["seed"].nunique() != seeds or not spread[1] > 1e-9:  # F1 in percent: less is rounding
        return []
    ratio, questions = float(spread[0] / spread[1]), there.drop_duplicates("id")
    tails = [(1 + side * options.get("confidence", 0.95)) / 2 for side in (1, -1)]
    freedom = models * (seeds - 1)
    low, high = (ratio / f.ppf(tail, freedom, freedom) ** 0.5 for tail in tails)
    found = Estimate(ratio, low, high, len(questions), questions["paragraph"].nunique(), seeds)
    return [Effect(name, found, "seeds", above=1, margin=0)]


def mean_over_precisions(scores: pd.DataFrame, metric: str = "f1") -> pd.DataFrame:
    """Scores of each question, averaged over a model's precisions. In these rows `precision` is `mean`."""
    keys = ["model", "seed", "id", "paragraph"]
    return scores.groupby(keys, sort=False, as_index=False)[metric].mean().assign(precision="mean")
