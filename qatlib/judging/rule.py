"""Verdicts on the studies' claims, by a rule from intervals and never by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from qatlib.judging.stats import Estimate

Verdict = Literal["reproduced", "not reproduced", "undecided"]

SEEDS = 3
"""Trainings that a claim about a training method takes at least."""

MARGIN = 1.0
"""Points of F1, or percent of perplexity, that a claimed effect must be able to reach to count as possible."""


def verdict(effects: Iterable[Estimate], *, about_training: bool = True, margin: float | Sequence[float] = MARGIN) -> Verdict:
    """What intervals say of a claim that holds if every one of `effects` is above 0.

    Reproduced: every interval lies above 0. Not reproduced: one lies below `margin`, so that the effect is absent, too
    small to matter, or the opposite. Undecided otherwise, without any effect measured, and for a claim about a training
    method with fewer than `SEEDS` trainings, whose intervals do not cover the luck of training.

    Args:
        effects: paired differences, positive as the claim has them.
        margin: in the unit of the effects, one for all or one for each.
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
    """Of a claim in several parts, each with a verdict of its own: reproduced if all are, not reproduced if one is not."""
    found = set(verdicts)
    if "not reproduced" in found:
        return "not reproduced"
    return "undecided" if "undecided" in found else "reproduced"
