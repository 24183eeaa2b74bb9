"""What a search found, in tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from qatlib.learned import Learned
from qatlib.search import Allocation

SAME_TIME = 1.05
"""Candidates take the same time where the slowest takes less than so many times that of the fastest."""


def learned_to(problem: Allocation, learned: Mapping[float, Learned]) -> str:
    """How learned allocations ended, in words: what they expect to spend of their budgets, and how far the choice was made."""
    spent = {budget: float((found.shares * problem.cost).sum()) for budget, found in learned.items()}
    parts = (f"{x:.2f} of {budget:g} ({'within' if x <= budget else 'beyond'})" for budget, x in spent.items())
    largest = np.mean([found.shares.max(1) for found in learned.values()])
    chosen = f"the likeliest candidate of a group has a share of {largest:.2f} on average, of 1 were the choice made"
    return f"Expected at the end to be spent: {', '.join(parts)}; {chosen}."


def no_tradeoff(problem: Allocation) -> str:
    """One sentence where a budget of milliseconds gives a search nothing to trade; empty where it does.

    That is where all candidates take about the same time, or the base, which loses nothing, is the fastest.
    """
    total = problem.cost.sum(0)
    times = f"all layers take {', '.join(f'{ms:.2f} ms at {p.name}' for ms, p in zip(total, problem.precisions, strict=True))}"
    if total.max() < SAME_TIME * total.min():
        return f"There is nothing to search under a budget of latency, since all candidates take about the same time: {times}."
    if total.argmin() == 0:
        return f"There is nothing to search under a budget of latency, since the base is the fastest of all: {times}."
    return ""


def standing(gaps: pd.DataFrame) -> str:
    """One sentence on the ILP against the other methods, by the intervals of a gap table whose column `budget` is text."""

    def named(rows: pd.DataFrame) -> str:
        budgets = rows.groupby("over", sort=False)["budget"].agg(", ".join)
        return "; ".join(f"{over} at a budget of {at}" for over, at in budgets.items()) or "no method at any budget"

    ahead, behind = gaps[gaps["difference_low"] > 0], gaps[gaps["difference_high"] < 0]
    return f"By their intervals, the ILP is ahead of {named(ahead)}; ahead of the ILP is {named(behind)}."


def by_method(choices: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of configurations, whose ids `precision` holds, as scores of methods at budgets.

    Returns:
        In the results' schema, `model` being the method, `precision` the budget, and `seed` the draw.
    """
    drawn = choices[["method", "budget", "id"]].assign(draw=choices.groupby(["method", "budget"]).cumcount())
    joined = drawn.merge(scores, left_on="id", right_on="precision", suffixes=("_choice", ""))
    columns = {"method": "model", "budget": "precision", "draw": "seed"}
    return joined.drop(columns=["model", "precision", "seed"]).rename(columns=columns)[list(scores.columns)]
