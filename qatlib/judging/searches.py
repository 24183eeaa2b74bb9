"""Results of searches, as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qatlib.judging import results, sweeps
from qatlib.judging.results import Cell
from qatlib.learned import Learned
from qatlib.precision import Configuration, LayerInfo, Precision
from qatlib.search import Allocation, Interactions

SAME_TIME = 1.05
"""Candidates count as equally fast if the slowest takes less than this many times as long as the fastest."""


def learned_to(problem: Allocation, learned: Mapping[float, Learned]) -> str:
    """The end of learned allocations, in words: expected use of their budgets, and how decided the choice is."""
    spent = {budget: float((found.shares * problem.cost).sum()) for budget, found in learned.items()}
    parts = (f"{x:.2f} of {budget:g} ({'within' if x <= budget else 'beyond'})" for budget, x in spent.items())
    largest = np.mean([found.shares.max(1) for found in learned.values()])
    chosen = f"the likeliest candidate of a group has a share of {largest:.2f} on average, of 1 were the choice made"
    return f"Expected at the end to be spent: {', '.join(parts)}; {chosen}."


def no_tradeoff(problem: Allocation) -> str:
    """One sentence if a budget of milliseconds has no trade-off; empty if it has one.

    There is none if all candidates take about the same time, or if the base, which has no loss, is the fastest.
    """
    total = problem.cost.sum(0)
    times = f"all layers take {', '.join(f'{ms:.2f} ms at {p.name}' for ms, p in zip(total, problem.precisions, strict=True))}"
    if total.max() < SAME_TIME * total.min():
        return f"There is nothing to search under a budget of latency, since all candidates take about the same time: {times}."
    if total.argmin() == 0:
        return f"There is nothing to search under a budget of latency, since the base is the fastest of all: {times}."
    return ""


def standing(gaps: pd.DataFrame) -> str:
    """One sentence that compares the ILP with the other methods, from the intervals of a gap table (`budget` is text)."""

    def named(rows: pd.DataFrame) -> str:
        budgets = rows.groupby("over", sort=False)["budget"].agg(", ".join)
        return "; ".join(f"{over} at a budget of {at}" for over, at in budgets.items()) or "no method at any budget"

    ahead, behind = gaps[gaps["difference_low"] > 0], gaps[gaps["difference_high"] < 0]
    return f"By their intervals, the ILP is ahead of {named(ahead)}; ahead of the ILP is {named(behind)}."


def by_method(choices: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Turn scores of configurations (ids in `precision`) into scores of methods at budgets.

    Returns:
        Scores in the results' schema: `model` is the method, `precision` the budget, `seed` the draw.
    """
    drawn = choices[["method", "budget", "id"]].assign(draw=choices.groupby(["method", "budget"]).cumcount())
    joined = drawn.merge(scores, left_on="id", right_on="precision", suffixes=("_choice", ""))
    columns = {"method": "model", "budget": "precision", "draw": "seed"}
    return joined.drop(columns=["model", "precision", "seed"]).rename(columns=columns)[list(scores.columns)]


def summary(methods: pd.DataFrame, choices: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """The scores of every method of a search at every budget.

    Args:
        methods: the result of `by_method`.
        choices: the result of `qatlib.studies.allocations.listed`, with `average_bits` in place of `spent`.

    Returns:
        One row per method and budget: `method`, `budget`, `average_bits` (mean of its draws), `f1`, `em` (percent), `loss`
        (nats), each with `_low` and `_high`, `n`, `paragraphs`.
    """
    table = results.mean_table(methods, ["f1", "em", "loss"], **options)
    table = table.rename(columns={"model": "method", "precision": "budget"})
    spent = choices.groupby(["method", "budget"])["average_bits"].mean()
    table.insert(2, "average_bits", spent.loc[list(zip(table["method"], table["budget"], strict=True))].to_numpy())
    return table


def predicted(
    choices: pd.DataFrame, scores: pd.DataFrame, base: pd.DataFrame, problem: Allocation, interactions: Interactions
) -> pd.DataFrame:
    """A search's predictions for each configuration, and its results on held-out questions.

    Args:
        choices: the result of `qatlib.studies.allocations.listed`, each configuration once.
        scores: scores of the configurations, with their ids in `precision`.
        base: scores of the base.

    Returns:
        `choices` with `f1` (percent) and three losses added to the base's, in nats: `measured`; `predicted`, as a sum of the
        groups' losses; `second_order`, with the interactions of pairs.
    """
    mean = scores.groupby("precision")[["loss", "f1"]].mean()
    table = choices.assign(
        measured=choices["id"].map(mean["loss"]) - base["loss"].mean(),
        f1=choices["id"].map(mean["f1"]),
        predicted=[problem.predicted(choice) for choice in choices["choice"]],
    )
    return table.assign(second_order=table["predicted"] + [interactions.added(choice) for choice in choices["choice"]])


def prediction_table(judged: pd.DataFrame, pairs: bool, **options: Any) -> pd.DataFrame:
    """Agreement between each prediction's ranking of configurations and the ranking on held-out questions.

    `average bits alone` predicts that fewer bits lose more. `predicted, within a budget` compares each configuration's
    difference from the mean of its budget, for budgets with more than two configurations.

    Args:
        judged: the result of `predicted`, with `average_bits`.
        pairs: whether pairs were lowered together. Only then is the second order a separate prediction.

    Returns:
        One row per prediction: `prediction`, `correlation` (Spearman's, with `_low`, `_high`), `configurations` (how many).
    """
    within = judged.groupby("budget")[["predicted", "measured"]].transform(lambda x: x - x.mean())
    made = {"predicted": judged[["predicted", "measured"]]}
    if pairs:
        made["second order"] = judged[["second_order", "measured"]]
    made["average bits alone"] = judged[["average_bits", "measured"]].assign(average_bits=-judged["average_bits"])
    made["predicted, within a budget"] = within[judged["budget"].map(judged["budget"].value_counts()) > 2]
    rows = []
    for name, pair in made.items():
        found = sweeps.rank_correlation(pair.iloc[:, 0].tolist(), pair["measured"].tolist(), **options)
        rows.append({"prediction": name} | results.interval("correlation", found) | {"configurations": len(pair)})
    return pd.DataFrame(rows)


def recommended(
    configurations: Mapping[float, Configuration], scores: pd.DataFrame, base: Cell, layers: Sequence[LayerInfo], **options: Any
) -> pd.DataFrame:
    """The integer program's configuration for every budget, compared with all layers at the base.

    Args:
        configurations: by budget of average weight bits.
        scores: the result of `by_method`, and scores of the base.
        base: the base's cell in `scores`; its `precision` is the one that layers were lowered from.

    Returns:
        One row per budget: `budget`, `average_bits` (of weights), `lowered` (percent of the layers), `f1_change` (points, paired,
        with `_low`, `_high`), `n`.
    """
    rows = []
    for budget, configuration in configurations.items():
        lowered = sum(p != Precision.parse(base.precision) for p in configuration.values()) / len(configuration)
        lost = results.paired(scores, Cell("ILP", f"{budget:g}"), base, "f1", **options)
        row = {"budget": budget, "average_bits": configuration.average_bits(layers)[0], "lowered": 100 * lowered}
        rows.append(row | results.interval("f1_change", lost) | {"n": lost.n})
    return pd.DataFrame(rows)
