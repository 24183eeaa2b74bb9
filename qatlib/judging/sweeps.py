"""Tables of the cost of lowering one block × role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from qatlib.judging import results, stats
from qatlib.precision import Group


def cell_table(sweep: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """The heatmaps' cells: mean changes with intervals.

    Returns:
        One row per cell: `base`, `block`, `role`, `lowered`, `bits`, `loss_change`, `f1_change`, `em_change` (each with
        `_low`, `_high`), `n`.
    """
    keys = ["base", "block", "role", "lowered", "bits"]
    tables = []
    for place, rows in sweep.groupby(keys, sort=False):
        scores = rows.assign(model="cell", precision="", seed=0)
        table = results.mean_table(scores, ["loss_change", "f1_change", "em_change"], **options)
        where = pd.DataFrame([place], columns=keys)
        tables.append(where.join(table.drop(columns=["model", "precision", "paragraphs"])))
    return pd.concat(tables, ignore_index=True)


def by_role(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Blocks and roles by their role, in order of appearance."""
    found: dict[str, list[Group]] = {}
    for block, role in groups:
        found.setdefault(role, []).append((block, role))
    return found


def by_block(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Blocks and roles by their block (`block 0`), in order of appearance."""
    found: dict[str, list[Group]] = {}
    for block, role in groups:
        found.setdefault(f"block {block}", []).append((block, role))
    return found


def effects(
    sweep: pd.DataFrame, parts: Mapping[str, Iterable[Group]], weights: Mapping[Group, int] | None = None
) -> pd.DataFrame:
    """Cost of lowering one block × role, per question, averaged over each part of the model.

    Args:
        sweep: the sweep from one base with one kind of lowering.
        parts: by name, the blocks and roles to average over.
        weights: numbers of weights. If given, the cost is per million lowered weights; otherwise it is per layer.

    Returns:
        In the results' schema: `model` (the part), `precision` (the bits), `seed`, `id`, `paragraph`, `loss_change`,
        `f1_change`, `em_change`.
    """
    metrics = ["loss_change", "f1_change", "em_change"]
    tables = []
    for name, groups in parts.items():
        chosen = set(groups)
        rows = sweep[[(b, r) in chosen for b, r in zip(sweep["block"], sweep["role"], strict=True)]]
        if weights is not None:
            millions = pd.Series([weights[b, r] / 1e6 for b, r in zip(rows["block"], rows["role"], strict=True)], rows.index)
            rows = rows.assign(**{metric: rows[metric] / millions for metric in metrics})
        mean = rows.groupby(["bits", "id", "paragraph"], sort=False)[metrics].mean().reset_index()
        tables.append(mean.assign(model=name, precision=mean["bits"].astype(str), seed=0).drop(columns="bits"))
    return pd.concat(tables, ignore_index=True)


def rank_correlation(x: Sequence[float], y: Sequence[float], **options: Any) -> stats.Estimate:
    """Spearman's rank correlation with a percentile bootstrap interval over the pairs."""
    return stats.over_pairs(lambda a, b: float(spearmanr(a, b).statistic), x, y, **options)
