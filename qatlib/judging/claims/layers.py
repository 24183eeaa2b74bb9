"""C10 to C13 and C15: which layers need their bits, from a sweep of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from qatlib.judging import results
from qatlib.judging.claims import Effect, mean_over_precisions, verdict_table
from qatlib.judging.results import Cell
from qatlib.judging.rule import MARGIN
from qatlib.judging.stats import Estimate

NATS = 0.02
"""Nats a layer that a difference between layers must be able to reach to count as possible."""

S1_MIXED = 100 * 71.18 / 74.03
"""Percent of uniform 8 bits' F1 that S1's mixed configuration keeps."""

PAIRS: Mapping[tuple[str, str], str] = {
    ("attn", "mlp"): "C10",
    ("qkv and mlp_in", "attn_out and mlp_out"): "C11",
    ("all but attn_out", "attn_out"): "C11",
    ("mlp_out", "qkv"): "C12",
    ("mlp_out", "attn_out"): "C12",
    ("mlp_out", "mlp_in"): "C12",
    ("first third", "last quarter"): "C13",
}
"""Parts of the model of which the first costs more than the second, as a claim has it."""


def verdicts(
    costs: Mapping[str, pd.DataFrame], layers: Mapping[str, float], kept: Mapping[str, Estimate], **options: Any
) -> pd.DataFrame:
    """C10 to C13, on the mean over the bit-widths that layers are lowered to, and C15.

    Args:
        costs: what lowering costs over each part of the model (`layerwise.effects`), by what it is counted per.
        layers: how many layers that is on average, by the same.
        kept: percent of the base's F1 with 83 % of the layers lowered, by the configuration that does it.

    Returns:
        As `verdict_table`; effects in nats of span loss, and in percent for C15.
    """
    found: dict[str, list[Effect]] = {claim: [] for claim in PAIRS.values()}
    for unit, frame in costs.items():
        mean = mean_over_precisions(frame, "loss_change")
        known = set(results.cells(mean))
        for (part, other), claim in PAIRS.items():
            if not {Cell(part, "mean"), Cell(other, "mean")} <= known:  # a model of two blocks has no last quarter
                continue
            gap = results.paired(mean, Cell(part, "mean"), Cell(other, "mean"), "loss_change", **options)
            name = f"cost of {part} beyond {other} for {unit}, nats"
            found[claim].append(Effect(name, gap, "contrasts", margin=float(f"{NATS * layers[unit]:.2g}")))
    name = "percent of the base's F1 kept with 83 % of the layers lowered, {}"
    found["C15"] = [Effect(name.format(how), e, "c15", above=S1_MIXED - MARGIN, margin=0) for how, e in kept.items()]
    return verdict_table({claim: effects or "not measured here" for claim, effects in found.items()})
