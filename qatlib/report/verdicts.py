"""From scores to verdicts on the studies' claims, one function a notebook; the rule is `qatlib.claims.verdict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from qatlib import results
from qatlib.attacks.scores import Set, contrast, drops, select, set_name
from qatlib.claims import MARGIN, verdict
from qatlib.precision import FULL_PRECISION
from qatlib.results import Cell
from qatlib.stats import Estimate, cluster_bootstrap

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
    claims: Sequence[tuple[str, str, Effects, bool]] = [
        ("C03", "cyclic training keeps about 96 % of full precision", row, True),
        ("C16", "CPT is better with a shared adapter than with separate ones", separate, True),
        ("C17", "6 bits gain most from CPT", _gains_most(scores, "cpt shared", "random separate", "6", **options), True),
        ("C18", "CPT lifts 4 bits most", low, True),
        ("C19", "CPT's perplexity is no higher than static training's", static, True),
    ]
    return _table(claims)


def _table(claims: Sequence[tuple[str, str, Effects, bool]]) -> pd.DataFrame:
    rows = []
    for claim, says, effects, about_training in claims:
        found = {"claim": claim, "says": says, "verdict": verdict(effects.values(), about_training=about_training)}
        for effect, e in effects.items():
            rows.append(found | {"effect": effect, **results.interval("value", e), "n": e.n, "seeds": e.seeds})
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


def robust(
    complete: pd.DataFrame,
    finer: pd.DataFrame,
    hotflip: pd.DataFrame,
    words: pd.DataFrame | None,
    perplexities: pd.DataFrame,
    gains: Mapping[str, pd.DataFrame],
    sets: Sequence[Set],
    **options: Any,
) -> pd.DataFrame:
    """C20 to C26. Every defence is judged by its worst gradient attack a question, the adaptive one among them.

    Args:
        complete: scores under attack (`qatlib.attacks.scores`) with `worst`, at every precision and by RPI over every set.
        finer, hotflip, words: of `Robustness.drawn_finer`, `.hotflipped` and `Textual.worded`, with RPI among the answers.
        perplexities: of `Textual.perplexities`.
        gains: by method what RPI over the first set gains over the most robust static precision, `f1` a question and seed.

    Returns:
        As `cpt`.
    """
    first = sets[0]
    rpi, lost = f"RPI {set_name(first)}", drops(complete)
    answered = set(complete["answered"])
    cut: dict[str, Estimate] = {}
    natural: dict[str, Estimate] = {}
    both: dict[str, Estimate] = {}
    mixed: dict[str, Estimate] = {}
    finest: dict[str, Estimate] = {}
    less: dict[str, Estimate] = {}
    if "8" in answered:
        left = contrast(select(lost, "8", "worst"), select(lost, rpi, "worst"), "f1_drop", scale=1 - 0.58, **options)
        cut[f"42 % of the drop at 8 bits less the drop of {rpi}"] = left
    if words is not None:
        dropped = drops(words)
        for p in (q.name for q in first if q != FULL_PRECISION):
            mine, other = select(dropped, p, f"words at {p}"), select(dropped, rpi, f"words EOT {set_name(first)}")
            natural[f"drop at {p} bits less that of {rpi}"] = contrast(mine, other, "f1_drop", **options)
    if "32" in answered:
        flips = drops(hotflip)
        for name, of, aims in (
            ("PGD", lost, {"8": "worst", rpi: "worst", "32": "worst"}),
            ("HotFlip", flips, {"8": "HotFlip at 8", rpi: f"HotFlip EOT {set_name(first)}", "32": "HotFlip at 32"}),
        ):
            for way in (w for w in ("8", rpi) if w in set(of["answered"])):
                full = select(of, "32", aims["32"])
                both[f"{name}: drop at 32 bits less that of {way}"] = contrast(
                    full, select(of, way, aims[way]), "f1_drop", **options
                )
    three = next((s for s in sets if {p.name for p in s} == {"4", "6", "8"}), None)
    two = next((s for s in sets if {p.name for p in s} == {"4", "8"}), None)
    if two and three:
        a, b = (select(complete, f"RPI {set_name(s)}", "worst") for s in (two, three))
        mixed[f"F1 of {set_name(two)} over {set_name(three)}"] = contrast(a, b, **options)
    for kind, attack in (("layer", "EOT, mixed"), ("token", "EOT, mixed")):
        a, b = select(finer, f"per {kind}", attack), select(finer, "per batch", "EOT, uniform")
        finest[f"F1 of drawing per {kind} over per batch"] = contrast(a, b, **options)
    if {"random", "consistency"} <= set(gains):
        less["gain of RPI after random training less that after consistency training"] = contrast(
            gains["random"], gains["consistency"], **options
        )
    claims: Sequence[tuple[str, str, Effects, bool]] = [
        ("C20", "RPI cuts the drop under PGD by at least 58 %", cut, False),
        ("C21", "RPI cuts the drop under QA-Attack", natural, False),
        ("C22", "character noise raises perplexity alike at every precision", _alike(perplexities, **options), False),
        ("C23", "8 bits and RPI reduce the drop under PGD and HotFlip against 32 bits", both, False),
        ("C24", "drawing from 4 and 8 defends better than from 4, 6 and 8", mixed, False),
        ("C25", "finer draws defend better", finest, False),
        ("C26", "consistency training weakens RPI", less, True),
    ]
    return _table(claims)


NOISE_MARGIN = 5.0
"""Percent by which two rises of perplexity may differ and count as alike."""


def noise_rises(perplexities: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """By how many percent character noise raises perplexity at every precision, with intervals by paragraph."""
    rows = []
    for name in perplexities["precision"].unique():
        mine = perplexities[perplexities["precision"] == name]
        columns = [mine[c] for c in ("noisy_nll", "noisy_tokens", "nll", "tokens")]
        found = cluster_bootstrap(columns, mine["paragraph"], _rise, **options)
        rows.append({"precision": name, **results.interval("rise", found), "paragraphs": found.n})
    return pd.DataFrame(rows)


def _rise(noisy: Any, noisy_tokens: Any, clean: Any, tokens: Any) -> Any:
    return 100 * (np.exp(noisy / noisy_tokens - clean / tokens) - 1)


def _alike(perplexities: pd.DataFrame, **options: Any) -> dict[str, Estimate]:
    """How far each precision's rise stays within the margin of that at 32 bits, on either side."""
    names = [n for n in perplexities["precision"].unique() if n != "32"]
    base, effects = perplexities[perplexities["precision"] == "32"], {}
    columns = ("noisy_nll", "noisy_tokens", "nll", "tokens")
    for name in names if len(base) else ():
        pair = perplexities[perplexities["precision"] == name].merge(base, on="paragraph", suffixes=("", "_32"))
        both = [pair[f"{c}{side}"] for side in ("", "_32") for c in columns]
        apart = cluster_bootstrap(both, pair["paragraph"], lambda *t: _rise(*t[:4]) - _rise(*t[4:]), **options)
        effects[f"{NOISE_MARGIN:g} less the rise at {name} beyond that at 32"] = _room(apart, NOISE_MARGIN)
        effects[f"{NOISE_MARGIN:g} less the rise at 32 beyond that at {name}"] = _room(
            replace(apart, value=-apart.value, low=-apart.high, high=-apart.low), NOISE_MARGIN
        )
    return effects
