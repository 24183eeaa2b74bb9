"""C16 to C19 and the cyclic part of C03: cyclic precision training compared with random and static training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from qatlib.judging import results
from qatlib.judging.claims import Effect, mean_over_precisions, spreads_wider, verdict_table
from qatlib.judging.results import Cell
from qatlib.judging.rule import MARGIN
from qatlib.judging.stats import Estimate

S2_KEPT = 96.0
"""Percent of full precision that S2 keeps with cyclic training."""

S1_WIDTHS, S4_WIDTHS = ("8", "4"), ("8",)
"""The other widths of S1 and S4. They say that 6 bits (S1) and 4 bits (S4) gain most."""

S3_LEAST = 4
"""The fewest bits of S3. S3's static and cyclic perplexities are similar there."""


def gains(scores: pd.DataFrame, model: str, over: str) -> pd.DataFrame:
    """Per question, the `gain` in F1 of `model` over `over` at each precision both have, in the `scores` schema."""
    keys = ["precision", "seed", "id", "paragraph"]
    mine, other = (scores.loc[scores["model"] == name, [*keys, "f1"]] for name in (model, over))
    pair = mine.merge(other, on=keys, suffixes=("", "_over"))
    return pair[keys].assign(model="gain", gain=pair["f1"] - pair["f1_over"])


def _gains_most(scores: pd.DataFrame, model: str, over: str, most: str, beside: Sequence[str], **options: Any) -> list[Effect]:
    """The gain of `model` over `over` at precision `most`, minus the gain at each other precision of the study."""
    gained = gains(scores, model, over)
    others = [p for p in gained["precision"].unique() if p in beside]
    if most not in set(gained["precision"]):
        return []
    there = Cell("gain", most)
    return [
        Effect(
            f"gain of {model} over {over} at {most} bits less that at {p}",
            results.paired(gained, there, Cell("gain", p), "gain", **options),
            "gaps",
        )
        for p in others
    ]


def kept_of_teacher(scores: pd.DataFrame, teacher: pd.DataFrame, **options: Any) -> dict[str, Estimate]:
    """Percent of the teacher's F1 that S2's method keeps, mean over its precisions.

    S2's method is `pattern shared`, or `cpt shared` if the former was not trained.

    Args:
        teacher: scores of one model at one precision, on the same questions.

    Returns:
        The percentage by the method's name; empty if neither was trained.
    """
    (reference,) = results.cells(teacher)
    for name in [name for name in ("pattern shared", "cpt shared") if name in set(scores["model"])][:1]:
        both = pd.concat([teacher, mean_over_precisions(scores[scores["model"] == name])], ignore_index=True)
        return {name: results.kept(both, Cell(name, "mean"), reference, **options)}
    return {}


def verdicts(scores: pd.DataFrame, perplexities: pd.DataFrame, kept: Mapping[str, Estimate], **options: Any) -> pd.DataFrame:
    """C16 to C19, and C03's cyclic row.

    Args:
        scores, perplexities: of the methods of notebook 4, in the schemas of `qatlib.judging.results`, at trained precisions.
        kept: the result of `kept_of_teacher`.

    Returns:
        As `verdict_table`; effects are in points of F1, for C03 and C19 in percent.
    """
    names = set(scores["model"])
    separate: list[Effect] = []
    if {"cpt shared", "cpt separate"} <= names:
        mean = mean_over_precisions(scores[scores["model"].isin(["cpt shared", "cpt separate"])])
        gap = results.paired(mean, Cell("cpt shared", "mean"), Cell("cpt separate", "mean"), "f1", **options)
        separate.append(Effect("shared over separate adapters, mean of all precisions", gap, "accuracy"))
        apart = [mean[mean["model"] == name] for name in ("cpt separate", "cpt shared")]
        separate += spreads_wider("seeds' spread of F1, separate adapters over shared, a ratio", *apart, **options)
    low: list[Effect] = []
    at_4 = gains(scores, "cpt separate", "random separate")
    at_4 = at_4[at_4["precision"] == "4"]
    if len(at_4):
        gained = results.mean_of(at_4, Cell("gain", "4"), "gain", **options)
        most = _gains_most(scores, "cpt separate", "random separate", "4", S4_WIDTHS, **options)
        low = [Effect("gain of cpt separate over random separate at 4 bits", gained, "gaps"), *most]
    static: list[Effect] = []
    widths = results.widths(perplexities)
    for cell in results.cells(perplexities):
        trained_by_s3 = cell.model == "static" and widths[cell.precision].w_bits >= S3_LEAST
        if trained_by_s3 and Cell("cpt shared", cell.precision) in results.cells(perplexities):
            change = results.paired(perplexities, Cell("cpt shared", cell.precision), cell, "perplexity", **options)
            name = f"percent of perplexity, cpt shared against static, at {cell.precision}"
            static.append(Effect(name, change, "perplexity_gaps", below=MARGIN, margin=0))
    whole = "percent of the teacher's F1 that {} keeps, mean of all precisions"
    cyclic = [Effect(whole.format(m), share, "accuracy", above=S2_KEPT - MARGIN, margin=0) for m, share in kept.items()]
    found: dict[str, list[Effect] | str] = {
        "C03": cyclic or "takes pattern shared or cpt shared among cpt.methods",
        "C16": separate or "takes cpt shared and cpt separate among cpt.methods",
        # S1's own pair: shared adapters with CPT against separate adapters without CPT
        "C17": _gains_most(scores, "cpt shared", "random separate", "6", S1_WIDTHS, **options)
        or "takes cpt shared and random separate, and 6 bits beside 8 or 4",
        "C18": low or "takes cpt separate and random separate, and 4 bits among others",
        "C19": static or f"takes cpt shared and static, at {S3_LEAST} bits or more",
    }
    return verdict_table(found)
