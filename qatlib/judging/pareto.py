"""Accuracy against cost: F1 per bit, and the line through configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from qatlib.judging import stats


def per_bit(costs: pd.DataFrame, accuracy: pd.DataFrame, metric: str = "f1") -> pd.DataFrame:
    """`cost_table` with a metric added, and that metric per average weight bit.

    Args:
        accuracy: `results.accuracy_table`; its `precision` holds the configurations' names.

    Returns:
        The rows of `costs` with `f1` and `f1_per_bit`, each with `_low` and `_high`.

    Raises:
        KeyError: a configuration without a score.
    """
    scored = accuracy.set_index("precision").loc[costs["configuration"]].reset_index(drop=True)
    table = costs.copy()
    for side in ("", "_low", "_high"):
        table[f"{metric}{side}"] = scored[f"{metric}{side}"]
        table[f"{metric}_per_bit{side}"] = scored[f"{metric}{side}"] / costs["w_bits"]
    return table


def trend_of_study(
    scores: pd.DataFrame, table: pd.DataFrame, study: str, **options: Any
) -> tuple[stats.Estimate, stats.Estimate] | None:
    """`linear_trend` over one study's own configurations; None if they have fewer than three different average bits or scores.

    Args:
        table: `configuration`, `study`, `w_bits`, `f1`, one row per configuration.
    """
    own = table[table["study"] == study]
    if own["f1"].nunique() < 3 or own["w_bits"].nunique() < 3:
        return None
    return linear_trend(scores, dict(zip(own["configuration"], own["w_bits"], strict=True)), **options)


def linear_trend(
    scores: pd.DataFrame, bits: Mapping[str, float], metric: str = "f1", **options: Any
) -> tuple[stats.Estimate, stats.Estimate]:
    """The least-squares line of a metric over the configurations' average bits (S4's figure 2), bootstrapped over configurations.

    Args:
        scores: `scores` rows of one model (`qatlib.judging.results`), with the same questions for every configuration.
        bits: average bits of each configuration, by its name in `precision`; at least three, not all equal.
        options: options of `stats.over_pairs`.

    Returns:
        The slope in points per bit, and R², the share of the configurations' variance that the line explains.

    Raises:
        ValueError: the configurations answer different questions.
    """
    answers = scores.pivot(index="id", columns="precision", values=metric)[list(bits)]
    if answers.isna().any(axis=None):
        raise ValueError("the configurations answer different questions: no line through their scores")
    points = list(bits.values()), answers.mean().to_numpy()
    return (
        stats.over_pairs(lambda x, y: np.cov(x, y)[0, 1] / np.var(x, ddof=1), *points, **options),
        stats.over_pairs(lambda x, y: np.cov(x, y)[0, 1] ** 2 / (np.var(x, ddof=1) * np.var(y, ddof=1)), *points, **options),
    )
