"""Rules for twelve checks of an attack evaluation, computed from scores per question.

After Carlini et al. 2019 ("On evaluating adversarial robustness"), Athalye et al. 2018 and the notes of AutoAttack (Croce & Hein
2020) on randomized models. A failed check is printed as failed.
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
"""A change of at most this many points of F1 counts as no change."""

BROKEN = 5.0
"""F1 of at most this many points counts as about 0."""

WIDEST = TOLERANCE + 5.0
"""Points of F1 that an interval around 0 may reach. If it goes further, on the side that matters, the check is undecided."""

Verdict = Literal["pass", "FAIL", "too few to tell", "shown"]


@dataclass(frozen=True)
class Check:
    """One check: what was examined, what was found, and whether it passes."""

    number: int
    what: str
    found: Estimate | None = None
    verdict: Verdict = "shown"
    """`shown` if no value is right or wrong; `too few to tell` if there are too few questions for either verdict."""


def passes(holds: bool) -> Verdict:
    """The verdict as a word."""
    return "pass" if holds else "FAIL"


def above_zero(number: int, what: str, found: Estimate) -> Check:
    """Passes if the whole interval is above 0."""
    untold = found.low <= 0 < found.high and found.high > WIDEST
    return Check(number, what, found, "too few to tell" if untold else passes(found.low > 0))


def not_below_zero(number: int, what: str, found: Estimate) -> Check:
    """Fails if the value is below 0 by more than the tolerance and its whole interval is below 0."""
    less = found.value < -TOLERANCE
    untold = not (less and found.high < 0) and (less or found.low < -WIDEST)
    return Check(number, what, found, "too few to tell" if untold else passes(not less))


def about_zero(number: int, what: str, found: Estimate) -> Check:
    """Passes if the interval contains 0 without reaching far beyond, and the value is 0 within the tolerance."""
    holds_zero = found.low <= 0 <= found.high
    untold = holds_zero and (max(abs(found.low), abs(found.high)) > WIDEST or abs(found.value) > TOLERANCE)
    return Check(number, what, found, "too few to tell" if untold else passes(holds_zero))


def broken(number: int, what: str, found: Estimate) -> Check:
    """Passes if F1 is about 0."""
    untold = found.low <= BROKEN < found.value
    return Check(number, what, found, "too few to tell" if untold else passes(found.value <= BROKEN))


def undermining(checks: Iterable[Check]) -> list[int]:
    """Numbers of the failed checks that rule out any claim for a defence: the attacks were not the strongest known (0, 3 to 8),
    or the control gained as well (11)."""
    return sorted(_failed(checks) & {0, *range(3, 9), 11})


def _failed(checks: Iterable[Check]) -> set[int]:
    return {check.number for check in checks if check.verdict == "FAIL"}


def masking_suspected(checks: Iterable[Check]) -> bool:
    """Whether attacks that follow the model's own gradient are not the strongest: checks 0, 3, 4, 6 and 8.

    Signs of it: a larger radius or more steps do no more harm (0), no attack succeeds at a fixed precision (3), an attack
    through a separately trained model (4) or through full precision (6) is stronger, few gradients are nonzero (6), or an
    attack without gradients is stronger (8).
    """
    return bool(_failed(checks) & {0, 3, 4, 6, 8})


def summary(checks: Sequence[Check]) -> str:
    """Text for the page: that all checks hold, or which fail, and which have too few questions."""
    said = []
    if failed := [f"{check.number} ({check.what})" for check in checks if check.verdict == "FAIL"]:
        said.append(f"Failed: check {'; '.join(failed)}.")
    if untold := sorted({check.number for check in checks if check.verdict == "too few to tell"}):
        said.append(f"Too few questions to tell: of check {', '.join(map(str, untold))}.")
    if masking_suspected(checks):
        said.append("**Gradient masking suspected**: robustness measured by gradients may not be robustness.")
    return " ".join(said) or "All checks hold."


def tally(checks: Sequence[Check]) -> str:
    """How many passed, failed, or are undecided: `20 lines passed, 1 failed, 3 rest on too few questions`."""
    count = Counter(check.verdict for check in checks)
    return f"{count['pass']} lines passed, {count['FAIL']} failed, {count['too few to tell']} rest on too few questions"


def table(checks: Sequence[Check]) -> pd.DataFrame:
    """All checks as a table.

    Returns:
        `check` (0: is the attack itself sound), `what`, `value` with `_low` and `_high` (points of F1, unless `what` says
        otherwise), `n`, `holds`: the verdict.
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
