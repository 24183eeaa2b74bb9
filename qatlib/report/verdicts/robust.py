"""C20 to C26: random precision inference (RPI) and other defences under the worst attacker known here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from qatlib import results
from qatlib.attacks.scores import Set, contrast, drops, select, set_name
from qatlib.precision import FULL_PRECISION
from qatlib.report.verdicts import Effect, room, verdict_table
from qatlib.stats import Estimate, cluster_bootstrap

S0_CUT = 58.0
"""Percent of the drop at 8 bits that S0's RPI takes away at least."""


def verdicts(
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
        As `verdict_table`; effects in points of F1, and in percent for C22.
    """
    first = sets[0]
    rpi, lost = f"RPI {set_name(first)}", drops(complete)
    answered = set(complete["answered"])

    def less_lost(frame: pd.DataFrame, way: tuple[str, str], other: tuple[str, str], **changes: Any) -> Estimate:
        return contrast(select(frame, *other), select(frame, *way), "f1_drop", **changes, **options)

    cut: list[Effect] = []
    if "8" in answered:
        gap = less_lost(lost, (rpi, "worst"), ("8", "worst"), scale=1 - S0_CUT / 100)
        cut.append(Effect(f"{100 - S0_CUT:g} % of the drop at 8 bits less the drop of {rpi}", gap, "drops"))
    natural: list[Effect] = []
    if words is not None:
        exchanged = drops(words)
        for p in (q.name for q in first if q != FULL_PRECISION):
            gap = less_lost(exchanged, (rpi, f"words EOT {set_name(first)}"), (p, f"words at {p}"))
            natural.append(Effect(f"drop at {p} bits less that of {rpi}", gap, "text_attacks"))
    both: list[Effect] = []
    of = {
        "PGD": (lost, "worst", "worst", "drops"),
        "HotFlip": (drops(hotflip), "HotFlip at {}", "HotFlip EOT {}", "text_attacks"),
    }
    for name, (frame, at, over, table) in of.items() if "32" in answered else ():
        ways = {"8": at.format(8), rpi: over.format(set_name(first))}
        for way in (w for w in ways if w in set(frame["answered"])):
            gap = less_lost(frame, (way, ways[way]), ("32", at.format(32)))
            both.append(Effect(f"{name}: drop at 32 bits less that of {way}", gap, table))
    mixed: list[Effect] = []
    two, three = (next((s for s in sets if {p.name for p in s} == names), None) for names in ({"4", "8"}, {"4", "6", "8"}))
    if two and three:
        a, b = (select(complete, f"RPI {set_name(s)}", "worst") for s in (two, three))
        mixed.append(Effect(f"F1 of {set_name(two)} over {set_name(three)}", contrast(a, b, **options), "transfer_cells"))
    uniform = select(finer, "per batch", "EOT, uniform")
    finest = [
        Effect(
            f"F1 of drawing per {kind} over per batch",
            contrast(select(finer, f"per {kind}", "EOT, mixed"), uniform, **options),
            "finer",
        )
        for kind in ("layer", "token")
    ]
    less: list[Effect] = []
    if {"random", "consistency"} <= set(gains):
        name = "gain of RPI after random training less that after consistency training"
        less.append(Effect(name, contrast(gains["random"], gains["consistency"], **options), "trainings"))
    found = {
        "C20": cut,
        "C21": natural,
        "C22": _alike(perplexities, **options),
        "C23": both,
        "C24": mixed,
        "C25": finest,
        "C26": less,
    }
    return verdict_table(found, "not trained or drawn here")


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


def _alike(perplexities: pd.DataFrame, **options: Any) -> list[Effect]:
    """How far each precision's rise stays within the margin of that at 32 bits, on either side."""
    names = [n for n in perplexities["precision"].unique() if n != "32"]
    base = perplexities[perplexities["precision"] == "32"]
    effects: list[Effect] = []
    columns = ("noisy_nll", "noisy_tokens", "nll", "tokens")
    for name in names if len(base) else ():
        pair = perplexities[perplexities["precision"] == name].merge(base, on="paragraph", suffixes=("", "_32"))
        both = [pair[f"{c}{side}"] for side in ("", "_32") for c in columns]
        apart = cluster_bootstrap(both, pair["paragraph"], lambda *t: _rise(*t[:4]) - _rise(*t[4:]), **options)
        below = replace(apart, value=-apart.value, low=-apart.high, high=-apart.low)
        for what, gap in ((f"at {name} beyond that at 32", apart), (f"at 32 beyond that at {name}", below)):
            effects.append(Effect(f"{NOISE_MARGIN:g} less the rise {what}", room(gap, NOISE_MARGIN), "noise_rises"))
    return effects
