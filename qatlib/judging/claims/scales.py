"""C07 and C08: kinds of scales, on a model without quantization-aware training."""

from __future__ import annotations

from typing import Any

import pandas as pd

from qatlib.judging import results
from qatlib.judging.claims import Effect, verdict_table

CRUCIAL_AT = (4, 5, 6)
"""Weight bits in C07."""


def verdicts(weights: pd.DataFrame, activations: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """C07 and C08.

    Args:
        weights, activations: scores from `qatlib.studies.scales.weight_scales` and `.activation_scales`.

    Returns:
        As `verdict_table`; effects are in points of F1.
    """
    widths = results.widths(weights)
    channel = [
        Effect(f"a scale a channel over one a matrix at {p}", gap, "weight_scales_gap")
        for p, gap in results.gaps(weights, "per_channel", "per_tensor", "f1", **options)
        if widths[p].w_bits in CRUCIAL_AT
    ]
    own = [
        Effect(f"calibrated at {p} bits over carried over from others", gap, "calibration_gap")
        for p, gap in results.gaps(activations, "calibrated", "carried_over", "f1", **options)
    ]
    own += [
        Effect(f"calibrated over uncalibrated at {p} bits", gap, "calibration_gap")
        for p, gap in results.gaps(activations, "calibrated", "uncalibrated", "f1", **options)
    ]
    untested = "no bit-width of this run is among those it speaks of"
    return verdict_table({"C07": channel or untested, "C08": own or untested})
