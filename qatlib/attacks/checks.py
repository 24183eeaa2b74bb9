"""Twelve checks of an attack evaluation that can be believed, from scores a question.

After Carlini et al. 2019 ("On evaluating adversarial robustness"), Athalye et al. 2018 and the notes of AutoAttack (Croce & Hein
2020) on randomized models. A check that fails is printed as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from qatlib.results import interval
from qatlib.stats import Estimate

TOLERANCE = 1.0
"""Points of F1 that are taken for no change."""

BROKEN = 5.0
"""Points of F1 that count as about 0."""


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, what was found, and whether it is as it must be."""

    number: int
    what: str
    found: Estimate | None = None
    holds: bool | None = None
    """None for what is shown to the reader and has no right value."""

    @property
    def verdict(self) -> Literal["pass", "FAIL", "shown"]:
        """In a word."""
        return "shown" if self.holds is None else "pass" if self.holds else "FAIL"


def above_zero(number: int, what: str, found: Estimate) -> Check:
    """It must be more than 0, its whole interval."""
    return Check(number, what, found, found.low > 0)


def not_below_zero(number: int, what: str, found: Estimate) -> Check:
    """It must not be clearly less than 0: by more than the tolerance, its whole interval."""
    return Check(number, what, found, not (found.high < 0 and found.value < -TOLERANCE))


def about_zero(number: int, what: str, found: Estimate) -> Check:
    """Its interval must hold 0, or lie within the tolerance."""
    return Check(number, what, found, found.low <= 0 <= found.high or max(abs(found.low), abs(found.high)) <= TOLERANCE)


def broken(number: int, what: str, found: Estimate) -> Check:
    """F1 must be about 0."""
    return Check(number, what, found, found.value <= BROKEN)


def masking_suspected(checks: Iterable[Check]) -> bool:
    """Whether a gradient-free attack won (check 8), one at a fixed precision failed (3), or larger ones do no more (0)."""
    return any(check.holds is False for check in checks if check.number in (0, 3, 8))


def table(checks: Sequence[Check]) -> pd.DataFrame:
    """All of them.

    Returns:
        `check` (0 for the sanity of the attack itself), `what`, `value` with `_low` and `_high` (points of F1, where `what` does
        not say otherwise), `n`, `holds`: `pass`, `FAIL` or `shown`.
    """
    nan = float("nan")
    rows = []
    for check in checks:
        e = check.found
        figures: dict[str, float] = {"value": nan, "value_low": nan, "value_high": nan, "n": 0}
        if e is not None:
            figures = interval("value", e) | {"n": e.n}
        rows.append({"check": check.number, "what": check.what, **figures, "holds": check.verdict})
    return pd.DataFrame(rows)
