"""Twelve checks of an attack evaluation that can be believed, from scores a question.

After Carlini et al. 2019 ("On evaluating adversarial robustness"), Athalye et al. 2018 and the notes of AutoAttack (Croce & Hein
2020) on randomized models. A check that fails is printed as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from qatlib.judging.results import interval
from qatlib.judging.stats import Estimate

TOLERANCE = 1.0
"""Points of F1 that are taken for no change."""

BROKEN = 5.0
"""Points of F1 that count as about 0."""

WIDEST = TOLERANCE + 5.0
"""Points of F1 that an interval about 0 may reach to; one that goes beyond, to the side that matters, tells nothing."""

Verdict = Literal["pass", "FAIL", "too few to tell", "shown"]


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, what was found, and whether it is as it must be."""

    number: int
    what: str
    found: Estimate | None = None
    verdict: Verdict = "shown"
    """`shown` for what has no right value; `too few to tell` where the questions are too few for either verdict."""


def passes(holds: bool) -> Verdict:
    """In a word."""
    return "pass" if holds else "FAIL"


def above_zero(number: int, what: str, found: Estimate) -> Check:
    """It must be more than 0, its whole interval."""
    untold = found.low <= 0 < found.high and found.high > WIDEST
    return Check(number, what, found, "too few to tell" if untold else passes(found.low > 0))


def not_below_zero(number: int, what: str, found: Estimate) -> Check:
    """It must not be less than 0 by more than the tolerance: it fails if it is, and its whole interval lies below 0."""
    less = found.value < -TOLERANCE
    untold = not (less and found.high < 0) and (less or found.low < -WIDEST)
    return Check(number, what, found, "too few to tell" if untold else passes(not less))


def about_zero(number: int, what: str, found: Estimate) -> Check:
    """Its interval must hold 0, without reaching far beyond, and it must be 0 within the tolerance."""
    holds_zero = found.low <= 0 <= found.high
    untold = holds_zero and (max(abs(found.low), abs(found.high)) > WIDEST or abs(found.value) > TOLERANCE)
    return Check(number, what, found, "too few to tell" if untold else passes(holds_zero))


def broken(number: int, what: str, found: Estimate) -> Check:
    """F1 must be about 0."""
    untold = found.low <= BROKEN < found.value
    return Check(number, what, found, "too few to tell" if untold else passes(found.value <= BROKEN))


def undermining(checks: Iterable[Check]) -> list[int]:
    """The numbers of the failed checks after which nothing can be said for a defence: attacks were not the strongest known (0, 3
    to 8), or the control gained as well (11)."""
    return sorted(_failed(checks) & {0, *range(3, 9), 11})


def _failed(checks: Iterable[Check]) -> set[int]:
    return {check.number for check in checks if check.verdict == "FAIL"}


def masking_suspected(checks: Iterable[Check]) -> bool:
    """Whether attacks that follow the model's own gradient are not the strongest: checks 0, 3, 4, 6 and 8.

    Larger ones do no more (0), none succeeds at a fixed precision (3), one through a model trained apart (4) or through full
    precision (6) wins, few gradients are not zero (6), or one without gradients wins (8).
    """
    return bool(_failed(checks) & {0, 3, 4, 6, 8})


def summary(checks: Sequence[Check]) -> str:
    """What the page says of them: that all hold, or which do not, and of which numbers lines rest on too few questions."""
    said = []
    if failed := [f"{check.number} ({check.what})" for check in checks if check.verdict == "FAIL"]:
        said.append(f"Failed: check {'; '.join(failed)}.")
    if untold := sorted({check.number for check in checks if check.verdict == "too few to tell"}):
        said.append(f"Too few questions to tell: of check {', '.join(map(str, untold))}.")
    if masking_suspected(checks):
        said.append("**Gradient masking suspected**: robustness measured by gradients may not be robustness.")
    return " ".join(said) or "All checks hold."


def tally(checks: Sequence[Check]) -> str:
    """How many passed, failed, and can't be told: `20 lines passed, 1 failed, 3 rest on too few questions`."""
    count = Counter(check.verdict for check in checks)
    return f"{count['pass']} lines passed, {count['FAIL']} failed, {count['too few to tell']} rest on too few questions"


def table(checks: Sequence[Check]) -> pd.DataFrame:
    """All of them.

    Returns:
        `check` (0 for the sanity of the attack itself), `what`, `value` with `_low` and `_high` (points of F1, where `what` does
        not say otherwise), `n`, `holds`: the verdict.
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
