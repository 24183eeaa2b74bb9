"""Tables on the trained models: equal answers, returns of a cycle, flatness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from qatlib.judging import results, rule

CYCLING = ("cpt separate", "cpt shared", "pattern shared", "two-phase", "cpt reversed", "cpt all weights")
"""The methods with cycles. A shuffled schedule has no cycle."""


PAIRS = (
    ("cpt shared", "static"),
    ("cpt separate", "static"),
    ("cpt separate", "random separate"),
    ("cpt shared", "random shared"),
    ("cpt shared", "random separate"),
    ("cpt shared", "cpt separate"),
    ("pattern shared", "random shared"),
    ("cpt shared", "pattern shared"),
    ("two-phase", "static"),
    ("two-phase", "cpt shared"),
    ("cpt shared", "cpt reversed"),
    ("cpt shared", "cpt shuffled"),
    ("cpt all weights", "random all weights"),
    ("cpt all weights", "cpt shared"),
)
"""Pairs of compared methods. The second is the reference."""

MOVED_ALIKE = tuple((a, b) for a, b in PAIRS if a.endswith("all weights") == b.endswith("all weights"))
"""The `PAIRS` whose sharpness can be compared: sharpness moves the base weights in both, or the adapters in both."""

HEADLINED = (
    ("cpt shared", "static"),
    ("cpt separate", "static"),
    ("cpt separate", "random separate"),
    ("cpt shared", "random shared"),
    ("pattern shared", "random shared"),
    ("two-phase", "static"),
    ("cpt shared", "cpt shuffled"),
)
"""The `PAIRS` that show whether the cycle helps: they differ in the trained precisions, not in the adapters."""

NATS = 0.02
"""A difference in the rise of the loss counts from this size on."""


FLATTER: Mapping[rule.Verdict, str] = {
    "reproduced": "flatter",
    "not reproduced": "not flatter",
    "undecided": "undecided at this size",
}
"""Verdict → text on a minimum that is claimed to be flatter than another."""


def agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """Whether each question got the same answer from one model at two precisions.

    Args:
        scores: with `prediction`.

    Returns:
        One row per model, pair of precisions, seed and question: `model`, `precision` (as `8 and 4`), `seed`, `id`,
        `paragraph`, `same` (percent: 0 or 100).
    """
    parts = []
    for model in scores["model"].unique():
        rows = scores[scores["model"] == model]
        for a, b in combinations(rows["precision"].unique(), 2):
            pair = rows[rows["precision"] == a].merge(
                rows[rows["precision"] == b], on=["seed", "id", "paragraph"], suffixes=("", "_b")
            )
            same = 100.0 * (pair["prediction"].fillna("") == pair["prediction_b"].fillna(""))
            parts.append(pair[["seed", "id", "paragraph"]].assign(model=model, precision=f"{a} and {b}", same=same))
    return pd.concat(parts, ignore_index=True)


def returns(curves: pd.DataFrame) -> pd.DataFrame:
    """The training loss at every return of a cycle to the highest precision of the training.

    Args:
        curves: `model`, `seed`, `step`, `w_bits`, `span_loss`; methods that are not `CYCLING` are left out.

    Returns:
        One row per method and return, means over its trainings: `model`, `cycle` (from 1), `w_bits`, `steps` at this precision
        (including a second phase at these bits), `loss` (mean over these steps), `way` (loss of the lower steps since the last
        return, nats), `change` of `loss` from the last return. `below_way` and `below_last` are the numbers of trainings, out
        of `seeds`, in which `loss` was below `way` and below the last return.
    """
    rows = curves[curves["model"].isin(CYCLING)]
    training = [rows["model"], rows["seed"]]
    top = rows["w_bits"] == rows["w_bits"].groupby(training).transform("max")
    arrives = top & ~top.groupby(training).shift(fill_value=False)
    cycle = arrives.groupby(training).cumsum() + ~top  # the lower steps before a return belong to its cycle
    loss = rows["span_loss"]
    rows = rows.assign(cycle=cycle, steps=top, loss=loss.where(top), way=loss.where(~top))
    how = {"w_bits": "max", "steps": "sum", "loss": "mean", "way": "mean"}
    found = rows.groupby(["model", "seed", "cycle"], sort=False, as_index=False).agg(how)
    found = found[found["steps"] > 0]
    change = found.groupby(["model", "seed"])["loss"].diff()
    found = found.assign(change=change, below_way=found["loss"] < found["way"], below_last=change < 0, seeds=1)
    how = {"w_bits": "max", "steps": "max", **dict.fromkeys(("loss", "way", "change"), "mean")}
    how |= dict.fromkeys(("below_way", "below_last", "seeds"), "sum")
    return found.groupby(["model", "cycle"], sort=False, as_index=False).agg(how)


def mean_rise(sharpness: pd.DataFrame) -> pd.DataFrame:
    """Rise in loss and change in F1 of each question, mean over all directions, and over radii unless `precision` names one."""
    keys = ["model", "precision", "seed", "id", "paragraph"]
    return sharpness.groupby(keys, sort=False, as_index=False)[["loss_change", "f1_change"]].mean()


def flatness(sharpness: pd.DataFrame, model: str, others: Sequence[str], **options: Any) -> pd.DataFrame:
    """Whether a method's minimum is flatter than others' at the same precision, by the interval of the rise in loss.

    Args:
        sharpness: the table from `Cyclic.trained`; its radii are averaged.
        options: options of `qatlib.judging.results.paired`.

    Returns:
        One row per other method and precision: `model`, `over`, `precision`, `difference` in rise (nats, with `_low`, `_high`;
        below 0: flatter), `n`, `seeds`, `minimum` (of `FLATTER`, by the rule of `qatlib.judging.rule.verdict`).
    """
    risen, rows = mean_rise(sharpness), []
    for over in others:
        for precision, gap in results.gaps(risen, model, over, "loss_change", **options):
            row = {"model": model, "over": over, "precision": precision, **results.interval("difference", gap)}
            rows.append(row | {"n": gap.n, "seeds": gap.seeds, "minimum": FLATTER[rule.verdict([gap.below(0)], margin=NATS)]})
    columns = ["model", "over", "precision", "difference", "difference_low", "difference_high", "n", "seeds", "minimum"]
    return pd.DataFrame(rows, columns=columns)


def run_elsewhere(scores: pd.DataFrame, precisions: Sequence[str]) -> pd.DataFrame:
    """Scores at all precisions, of the models that also answered at a precision outside `precisions`."""
    elsewhere = scores.loc[~scores["precision"].isin(precisions), "model"]
    return scores[scores["model"].isin(elsewhere)].reset_index(drop=True)


def at_equal_bitops(scores: pd.DataFrame, methods: Sequence[str], precisions: Sequence[str]) -> pd.DataFrame:
    """Scores of trainings with as many bit operations as static training at the widest precision, and of this static training.

    Args:
        scores: the table from `qatlib.studies.cyclic.Cyclic.trained`.
        methods: methods trained at equal passes, which are left out, except `static` at the widest precision: it takes as many
            bit operations.
        precisions: the precisions of the cycle, widest first.

    Returns:
        Rows of `scores`; none if no method was trained again at equal bit operations.
    """
    again = ~scores["model"].isin(methods)
    widest = (scores["model"] == "static") & (scores["precision"] == precisions[0])
    rows = scores[(again | widest) & scores["precision"].isin(precisions)].reset_index(drop=True)
    return rows if (rows["model"] != "static").any() else rows[:0]


def falls(returned: pd.DataFrame) -> str:
    """One sentence: for each method, at how many returns to the highest precision the loss is below that of the previous return.

    Args:
        returned: the result of `returns`.
    """
    on = returned.dropna(subset="change").groupby("model", sort=False)[["below_last", "seeds"]].sum()
    fell = [f"{model} at {lower} of {n} returns" for model, lower, n in on.itertuples()] or ["none, which returns once"]
    return f"Training loss at the highest precision is lower than at the return before, of {', '.join(fell)}."


def least_agreement(same: pd.DataFrame, model: str) -> str:
    """In words: how often a model gives the same answer at the two precisions that agree least, and the best of the others.

    Args:
        same: `results.mean_table` of `agreement`. `static` is left out: it has a separate training at each precision.

    Returns:
        The text; empty if only `static` was trained.
    """
    least = same[same["model"] != "static"].sort_values("same", kind="stable").drop_duplicates("model").set_index("model")
    best = least.drop(index=model, errors="ignore")["same"].nlargest(1).index
    parts = []
    for name in (name for name in (model, *best) if name in least.index):
        share, low, high = least.loc[name, ["same", "same_low", "same_high"]]
        parts.append(f"{name} {share:.0f} % [{low:.0f}, {high:.0f}] (at {least.loc[name, 'precision']})")
    return "Same answers at the two precisions that agree least: " + "; best of the others ".join(parts) if parts else ""
