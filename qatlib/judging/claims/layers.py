"""C10 to C13 and C15: which layers need their bits, from a sweep of one model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from qatlib.judging import results, stats, sweeps
from qatlib.judging.claims import Effect, mean_over_precisions, verdict_table
from qatlib.judging.results import Cell
from qatlib.judging.rule import MARGIN
from qatlib.judging.stats import Estimate
from qatlib.precision import FAMILIES, Group

NATS = 0.02
"""Nats per layer. A difference between layers is still possible if its interval reaches this."""

S1_MIXED = 100 * 71.18 / 74.03
"""Percent of F1 at uniform 8 bits that S1's mixed configuration keeps."""

PAIRS: Mapping[tuple[str, str], str] = {
    ("attn", "mlp"): "C10",
    ("qkv and mlp_in", "attn_out and mlp_out"): "C11",
    ("all but attn_out", "attn_out"): "C11",
    ("mlp_out", "qkv"): "C12",
    ("mlp_out", "attn_out"): "C12",
    ("mlp_out", "mlp_in"): "C12",
    ("first third", "last quarter"): "C13",
}
"""Pairs of model parts. A claim says that lowering the first costs more than lowering the second."""


def parts(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """The parts that `PAIRS` compares, as blocks and roles: families of roles, each role, pairs of roles, both ends of the model.

    A third or a quarter of a model has whole blocks only, so it may be empty.
    """
    groups = list(groups)
    role, depth = sweeps.by_role(groups), len({block for block, _ in groups})
    role = defaultdict(list, role)
    found = {family: [group for name in roles for group in role[name]] for family, roles in FAMILIES.items()}
    found |= role | {"all but attn_out": [group for group in groups if group[1] != "attn_out"]}
    for a, b in (("qkv", "mlp_in"), ("attn_out", "mlp_out")):
        found[f"{a} and {b}"] = [*role[a], *role[b]]
    found["first third"] = [group for group in groups if group[0] + 1 <= depth / 3]
    found["last quarter"] = [group for group in groups if group[0] >= depth * 3 / 4]
    return found


def contrasts(costs: Mapping[str, pd.DataFrame], **options: Any) -> pd.DataFrame:
    """Cost of lowering the first part of each of `PAIRS` minus cost of lowering the second, at every bit-width.

    Args:
        costs: as in `verdicts`.

    Returns:
        One row per pair and bit-width: `claim`, `per` (the unit of counting), `model` and `over` (the parts), `precision`,
        `difference` (nats, with `_low`, `_high`), `p` (Holm-corrected within the table), `n`, `paragraphs`, `seeds`.
    """
    rows = [
        {"claim": claim, "per": unit, "model": part, "over": other, "precision": precision}
        | results.interval("difference", gap)
        | {"p": gap.p, "n": gap.n, "paragraphs": gap.clusters, "seeds": gap.seeds}
        for unit, frame in costs.items()
        for (part, other), claim in PAIRS.items()
        for precision, gap in results.gaps(frame, part, other, "loss_change", **options)
    ]
    table = pd.DataFrame(rows)
    return table.assign(p=stats.holm(table["p"].tolist()))


def verdicts(
    costs: Mapping[str, pd.DataFrame], layers: Mapping[str, float], kept: Mapping[str, Estimate], **options: Any
) -> pd.DataFrame:
    """C15, and C10 to C13 on the mean over the bit-widths that layers are lowered to.

    Args:
        costs: cost of lowering each of `parts` (`sweeps.effects`), by unit of counting.
        layers: mean number of layers in this unit, by unit of counting.
        kept: percent of the base's F1 with 83 % of the layers lowered, by configuration.

    Returns:
        As `verdict_table`; effects are in nats of span loss, for C15 in percent.
    """
    found: dict[str, list[Effect]] = {claim: [] for claim in PAIRS.values()}
    for unit, frame in costs.items():
        mean = mean_over_precisions(frame, "loss_change")
        known = set(results.cells(mean))
        for (part, other), claim in PAIRS.items():
            if not {Cell(part, "mean"), Cell(other, "mean")} <= known:  # for example, a model of two blocks has no last quarter
                continue
            gap = results.paired(mean, Cell(part, "mean"), Cell(other, "mean"), "loss_change", **options)
            name = f"cost of {part} beyond {other} for {unit}, nats"
            found[claim].append(Effect(name, gap, "contrasts", margin=float(f"{NATS * layers[unit]:.2g}")))
    name = "percent of the base's F1 kept with 83 % of the layers lowered, {}"
    found["C15"] = [Effect(name.format(how), e, "c15", above=S1_MIXED - MARGIN, margin=0) for how, e in kept.items()]
    return verdict_table({claim: effects or "not measured here" for claim, effects in found.items()})
