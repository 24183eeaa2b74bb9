"""From scores to verdicts on the studies' claims, one function a notebook; the rule is `qatlib.claims.verdict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from qatlib import results
from qatlib.claims import MARGIN, verdict
from qatlib.results import Cell
from qatlib.stats import Estimate

Effects = Mapping[str, Estimate]
"""What a claim says is above 0, by what it is the difference of."""


def gains(scores: pd.DataFrame, model: str, over: str, metric: str = "f1") -> pd.DataFrame:
    """Per question what `model` gains over `over` at each precision both have, as `scores` rows of a model called gain."""
    keys = ["precision", "seed", "id", "paragraph"]
    mine, other = (scores.loc[scores["model"] == name, [*keys, metric]] for name in (model, over))
    pair = mine.merge(other, on=keys, suffixes=("", "_over"))
    return pair[keys].assign(model="gain", **{metric: pair[metric] - pair[f"{metric}_over"]})


def mean_over_precisions(scores: pd.DataFrame, metric: str = "f1") -> pd.DataFrame:
    """Scores of each question averaged over a model's precisions, as rows whose `precision` is `mean`."""
    keys = ["model", "seed", "id", "paragraph"]
    return scores.groupby(keys, sort=False, as_index=False)[metric].mean().assign(precision="mean")


def _gains_most(scores: pd.DataFrame, model: str, over: str, most: str, **options: Any) -> dict[str, Estimate]:
    """How much more `model` gains over `over` at precision `most` than at each other."""
    gained = gains(scores, model, over)
    others = [p for p in gained["precision"].unique() if p != most]
    if most not in set(gained["precision"]):
        return {}
    there = Cell("gain", most)
    return {f"gain at {most} beyond that at {p}": results.paired(gained, there, Cell("gain", p), "f1", **options) for p in others}


def cpt(scores: pd.DataFrame, perplexities: pd.DataFrame, kept: Estimate | None, **options: Any) -> pd.DataFrame:
    """C16 to C19, and C03's cyclic row.

    Args:
        scores, perplexities: of the methods of notebook 4, in the schemas of `qatlib.results`, at trained precisions.
        kept: percent of the teacher's F1 that `cpt shared` keeps, mean over its precisions; None where it was not trained.

    Returns:
        One row an effect: `claim`, `says`, `effect`, `value` with `_low` and `_high` (above 0 is as the claim has it; points
        of F1, percent of perplexity), `n`, `seeds`, `verdict`, the claim's.
    """
    names = set(scores["model"])
    separate: dict[str, Estimate] = {}
    if {"cpt shared", "cpt separate"} <= names:
        mean = mean_over_precisions(scores[scores["model"].isin(["cpt shared", "cpt separate"])])
        gap = results.paired(mean, Cell("cpt shared", "mean"), Cell("cpt separate", "mean"), "f1", **options)
        separate["shared over separate adapters, mean of all precisions"] = gap
    low: dict[str, Estimate] = {}
    at_4 = gains(scores, "cpt separate", "random separate")
    at_4 = at_4[at_4["precision"] == "4"]
    if len(at_4):
        gained = results.mean_of(at_4, Cell("gain", "4"), "f1", **options)
        low = {"gain at 4": gained, **_gains_most(scores, "cpt separate", "random separate", "4", **options)}
    static: dict[str, Estimate] = {}
    for cell in results.cells(perplexities):
        if cell.model == "static" and Cell("cpt shared", cell.precision) in results.cells(perplexities):
            change = results.paired(perplexities, Cell("cpt shared", cell.precision), cell, "perplexity", **options)
            static[f"{MARGIN:g} percent less the change from static at {cell.precision}"] = _room(change, MARGIN)
    row = {} if kept is None else {f"percent kept beyond {96 - MARGIN:g}": _shifted(kept, MARGIN - 96)}
    claims: Sequence[tuple[str, str, Effects]] = [
        ("C03", "cyclic training keeps about 96 % of full precision", row),
        ("C16", "CPT is better with a shared adapter than with separate ones", separate),
        ("C17", "6 bits gain most from CPT", _gains_most(scores, "cpt shared", "random separate", "6", **options)),
        ("C18", "CPT lifts 4 bits most", low),
        ("C19", "CPT's perplexity is no higher than static training's", static),
    ]
    rows = []
    for claim, says, effects in claims:
        found = {"claim": claim, "says": says, "verdict": verdict(effects.values())}
        for effect, e in effects.items():
            figures = {"value": e.value, "value_low": e.low, "value_high": e.high, "n": e.n, "seeds": e.seeds}
            rows.append(found | {"effect": effect, **figures})
        if not effects:
            nan = float("nan")
            rows.append(
                found | {"effect": "not trained here", "value": nan, "value_low": nan, "value_high": nan, "n": 0, "seeds": 0}
            )
    return pd.DataFrame(rows)[["claim", "says", "effect", "value", "value_low", "value_high", "n", "seeds", "verdict"]]


def _shifted(e: Estimate, by: float) -> Estimate:
    return replace(e, value=e.value + by, low=e.low + by, high=e.high + by)


def _room(e: Estimate, limit: float) -> Estimate:
    """How far an estimate stays below a limit."""
    return replace(e, value=limit - e.value, low=limit - e.high, high=limit - e.low)
