"""Verdicts on the studies' claims. A rule derives them from intervals; none is written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from qatlib.judging.stats import Estimate

Verdict = Literal["reproduced", "not reproduced", "undecided"]

SEEDS = 3
"""Minimum number of trainings for a claim about a training method."""

MARGIN = 1.0
"""Points of F1, or percent of perplexity. A claimed effect is still possible if its interval reaches this."""


def verdict(effects: Iterable[Estimate], *, about_training: bool = True, margin: float | Sequence[float] = MARGIN) -> Verdict:
    """The verdict on a claim that holds if all of `effects` are above 0.

    Reproduced: every interval is above 0. Not reproduced: one interval is below `margin`, so the effect is absent, too small
    to matter, or opposite. Undecided: all other cases. Also undecided: no effect was measured, or a claim about a training
    method has fewer than `SEEDS` trainings, because then the intervals do not cover the luck of training.

    Args:
        effects: paired differences; positive values agree with the claim.
        margin: one for all effects or one for each, in their unit.
    """
    found = list(effects)
    margins = [margin] * len(found) if isinstance(margin, int | float) else margin
    if not found or (about_training and min(e.seeds for e in found) < SEEDS):
        return "undecided"
    if all(e.low > 0 for e in found):
        return "reproduced"
    if any(e.high < most and e.low <= 0 for e, most in zip(found, margins, strict=True)):
        return "not reproduced"
    return "undecided"


def combined(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim in several parts: reproduced if all parts are, not reproduced if any part is not reproduced."""
    found = set(verdicts)
    if "not reproduced" in found:
        return "not reproduced"
    return "undecided" if "undecided" in found else "reproduced"
