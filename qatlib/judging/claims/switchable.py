"""C01 to C06, C09 and C14: accuracy kept by one switchable model, which training helps, size and speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qatlib.judging import results
from qatlib.judging.claims import Effect, in_parts, mean_over_precisions, spreads_wider, verdict_table
from qatlib.judging.results import Cell
from qatlib.judging.rule import MARGIN
from qatlib.judging.stats import Estimate
from qatlib.params.experiments import Method
from qatlib.params.switchable import Switchable
from qatlib.precision import FULL_PRECISION

S1_KEPT = {"16": 100 * 75.42 / 76.80, "8": 100 * 74.03 / 76.80, "6": 100 * 71.15 / 76.80, "4": 100 * 60.41 / 76.80}
"""Percent of full-precision LoRA's F1 that S1 keeps."""

S2_KEPT = {"8": 98.0, "4": 95.0, "2": 85.0}
S2_FASTER = {"8": 2.0, "4": 3.0, "2": 4.0, "mixed": 2.5}
S2_SMALLER = {"8": 4.0, "4": 8.0, "2": 16.0, "mixed": 6.0}

AIMS = {"16": 99.5, "8": 99.5, "6": 99.0, "4": 97.0, "3": 88.0, "w2a8": 88.0}
"""Aim: percent of its own full-precision F1 that a switchable model keeps, with weights and activations at the width named."""

SPECIALIST_AIMS = -0.5, 0.0
"""Aim: points of F1 over a specialist of at least 4 bits, and over one of fewer bits."""

ABOUT = 0.9
"""Where a claim says "about" a factor, this share of the factor must be reached."""

LINEAR = 90.0
"""F1 falls about linearly if a line explains at least this percentage of the variance between configurations."""


def verdicts(
    methods: pd.DataFrame,
    kept_in: str,
    lessons: Sequence[tuple[str, str]],
    named_perplexities: pd.DataFrame,
    line: tuple[Estimate, Estimate] | None,
    **options: Any,
) -> pd.DataFrame:
    """C01 to C03, C05, C06, C09 and C14.

    Args:
        methods: scores of the compared trainings, with all seeds. Kept accuracy is relative to the first method's own 32 bits.
        kept_in: the table that shows the kept accuracy.
        lessons: pairs of `methods`. The first learns from a wider width or from a teacher, the second does not.
        named_perplexities: perplexities of the studies' configurations by name.
        line: slope and R² of F1 over the average bits of those configurations, if there are enough.

    Returns:
        As `verdict_table`; effects are in percent, or in points of F1 if they compare methods.
    """
    control = Cell(methods["model"].iloc[0], FULL_PRECISION.name)
    first = methods[methods["model"] == control.model]
    cells = results.cells(first)
    kept = {c.precision: results.kept(first, c, control, **options) for c in cells if c != control} if control in cells else {}
    of = f"{control.model} at {control.precision} bits"
    # S2's 2 bits may refer to the weights only
    of_weights = {str(p.w_bits): name for name, p in results.widths(first).items() if name in kept}

    def keeps(precision: str, share: float) -> Iterator[Effect]:
        if precision in kept:
            name = f"percent of F1 kept at {precision} bits, of {of}"
            yield Effect(name, kept[precision], kept_in, above=share - MARGIN, margin=0)

    little = [*keeps("6", S1_KEPT["6"])]
    if "4" in kept:
        name = f"percent of F1 kept at 4 bits, of {of}"
        little.append(Effect(name, kept["4"], kept_in, below=S1_KEPT["4"] + MARGIN, margin=0))
    s2 = [e for p, share in S2_KEPT.items() for e in keeps(of_weights.get(p, p), share)]
    together = mean_over_precisions(methods)
    helps = [
        Effect(
            f"{name} over {other}, mean of all precisions",
            results.paired(together, Cell(name, "mean"), Cell(other, "mean"), "f1", **options),
            "method_gaps",
        )
        for name, other in lessons
    ]
    dear = []
    if {"mixed8648", "uniform8"} <= set(named_perplexities["precision"]):
        mixed, uniform = (Cell(named_perplexities["model"].iloc[0], name) for name in ("mixed8648", "uniform8"))
        rise = results.paired(named_perplexities, mixed, uniform, "perplexity", **options)
        name = "percent of perplexity, mixed8648 against uniform8"
        dear.append(Effect(name, rise, "configurations_perplexity", above=8 - MARGIN, margin=0))
        dear.append(Effect(name, rise, "configurations_perplexity", below=9 + MARGIN, margin=0))
    straight = []
    if line is not None:
        straight.append(Effect("points of F1 that an average bit adds", line[0], "configurations", margin=0))
        name = "percent of the configurations' variance in F1 that a line over average bits explains"
        straight.append(Effect(name, _percent(line[1]), "configurations", above=LINEAR))
    found = {
        "C01": [e for p in ("16", "8") for e in keeps(p, S1_KEPT[p])] or "takes 32 bits, and 16 or 8, which are not trained here",
        "C02": in_parts(little, 2, "takes 32, 6 and 4 bits, which are not all trained here"),
        "C03": in_parts(s2, len(S2_KEPT), "takes 32, 8, 4 and 2 bits, which are not all trained here"),
        "C05": helps or "takes a method that learns from wider widths or a teacher beside one that does not, all else alike",
        "C06": [*_unstable(methods, **options)] or "takes 2 bits beside another width, trained with several seeds",
        "C09": dear or "takes mixed8648 and uniform8 among configurations.names",
        "C14": straight or "takes three of S4's configurations at least, of other average bits and another F1 each",
    }
    return verdict_table(found)


def aims(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Kept accuracy compared with `AIMS`.

    Args:
        accuracy: rows of `results.accuracy_table` for the switchable model, against its own 32 bits or the teacher.

    Returns:
        One row per precision that has an aim: `precision`, `aim`, `f1_kept` with `_low` and `_high` (percent), `n`, and
        `reached`: `yes` if the whole interval is above the aim, `no` if it is below, `undecided` otherwise.
    """
    rows = accuracy[accuracy["precision"].isin(AIMS)]
    found = rows[["precision", "f1_kept", "f1_kept_low", "f1_kept_high", "n"]].reset_index(drop=True)
    found.insert(1, "aim", [AIMS[p] for p in found["precision"]])
    return _reached(found, "f1_kept")


def aims_of_lora(scores: pd.DataFrame, model: str, **options: Any) -> pd.DataFrame:
    """`aims` relative to the F1 of plain LoRA: the specialist of 32 bits, trained with the same passes and never quantized.

    Args:
        scores: the result of `qatlib.studies.trainings.Trainings.compared`.
        model: the model whose F1 is judged.

    Returns:
        As `aims`; empty if there is no such specialist.
    """
    plain = Cell("specialist", FULL_PRECISION.name)
    if scores.empty or plain not in results.cells(scores):
        return pd.DataFrame()
    beside = pd.concat([results.pick(scores, plain), scores[scores["model"] == model]], ignore_index=True)
    return aims(results.accuracy_table(beside, plain, **options).query("model != 'specialist'"))


def specialist_aims(gaps: pd.DataFrame) -> pd.DataFrame:
    """`results.gap_table` of a switchable model over specialists, with `aim` (points) and `reached` as in `aims`."""
    return _reached(gaps.assign(aim=np.where(gaps["w_bits"] < 4, SPECIALIST_AIMS[1], SPECIALIST_AIMS[0])), "difference")


def _reached(table: pd.DataFrame, name: str) -> pd.DataFrame:
    low, high = table[f"{name}_low"], table[f"{name}_high"]
    return table.assign(reached=np.select([low >= table["aim"], high < table["aim"]], ["yes", "no"], "undecided"))


def cost_verdict(stored: pd.DataFrame, latencies: pd.DataFrame, weights: int) -> pd.DataFrame:
    """C04. It has its own table because times differ from run to run.

    Args:
        stored, latencies: results of `qatlib.studies.deployment`.
        weights: number of weights in all switchable layers.

    Returns:
        As `verdict_table`; effects are factors.
    """
    factors = [*_factors(stored, latencies, weights)]
    parts, why = len(S2_SMALLER) + len(S2_FASTER), "takes 8, 4 and 2 bits and mixed, which are not all deployed here"
    return verdict_table({"C04": in_parts(factors, parts, why, about_training=False)})


def lessons(methods: Sequence[Method], switchable: Switchable) -> list[tuple[str, str]]:
    """Pairs of methods: one learns from wider widths or a teacher; the other does not but is equal otherwise (the first such)."""
    settings = {m.name: m.applied(switchable) for m in methods}
    taught = [name for name, s in settings.items() if s.objective.rule.learns_from in ("wider", "teacher")]
    alone = [name for name, s in settings.items() if s.objective.rule.learns_from is None]
    alike = {name: s.model_copy(update={"objective": None}) for name, s in settings.items()}
    pairs = ((a, next((b for b in alone if alike[b] == alike[a]), None)) for a in taught)
    return [(name, other) for name, other in pairs if other is not None]


def _percent(share: Estimate) -> Estimate:
    return Estimate(100 * share.value, 100 * share.low, 100 * share.high, share.n, share.clusters, share.seeds)


def _factors(stored: pd.DataFrame, latencies: pd.DataFrame, weights: int) -> Iterator[Effect]:
    """Factors of sizes, which are exact, and of times, whose bounds come from the quartiles."""
    stored = stored.assign(precision=stored["precision"].astype(str))
    uniform = stored[stored["precision"] != "mixed"]
    names = {f"{bits:g}": p for bits, p in zip(uniform["w_bits"], uniform["precision"], strict=True)} | {"mixed": "mixed"}
    on_disk = dict(zip(stored["precision"], stored["disk_bytes"], strict=True))  # 2 bits may refer to the weights only
    for bits, factor in S2_SMALLER.items():
        if names.get(bits) in on_disk:
            smaller = 4 * weights / on_disk[names[bits]]
            found = Estimate(smaller, smaller, smaller, 1, 1)
            name = f"times smaller on disk than fp32 at {_spoken(names[bits])}, switchable weights alone"
            yield Effect(name, found, "stored", above=ABOUT * factor, margin=0)
    size = latencies["batch"] * latencies["tokens"]
    times = latencies[size == size.max()].set_index("model")[["speedup", "speedup_low", "speedup_high", "rounds"]]
    for bits, factor in S2_FASTER.items():
        if f"deployed {names.get(bits)}" in times.index:
            name = f"times as fast as fp32 at {_spoken(names[bits])}, {size.max()} tokens [quartiles]"
            value, low, high, rounds = times.loc[f"deployed {names[bits]}"]
            yield Effect(name, Estimate(value, low, high, int(rounds), 1), "latency", above=ABOUT * factor, margin=0)


def _spoken(name: str) -> str:
    return name if name == "mixed" else f"{name} bits"


def _unstable(methods: pd.DataFrame, **options: Any) -> Iterator[Effect]:
    """Ratio of the spread of F1 over training seeds at 2 bits (of weights at least) to the spread at the next width."""
    bits = {name: p.w_bits for name, p in results.widths(methods).items()}
    widths = sorted(bits, key=bits.__getitem__)
    if len(widths) > 1 and bits[widths[0]] == 2:
        there, beside = (methods[methods["precision"] == width] for width in widths[:2])
        name = f"seeds' spread of F1 within a method at {widths[0]} bits over that at {widths[1]}, a ratio"
        yield from spreads_wider(name, there, beside, **options)
