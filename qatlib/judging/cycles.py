"""Tables of what trainings became: equal answers, returns of a cycle, flatness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from qatlib.judging import results, rule

CYCLING = ("cpt separate", "cpt shared", "pattern shared", "two-phase", "cpt reversed", "cpt all weights")
"""The methods that go through cycles; a shuffled one has none."""


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
"""Methods that are compared; the second is what the first is compared with."""

MOVED_ALIKE = tuple((a, b) for a, b in PAIRS if a.endswith("all weights") == b.endswith("all weights"))
"""Those of `PAIRS` whose sharpness compares: both have the base's weights moved, or both their adapters'."""

HEADLINED = (
    ("cpt shared", "static"),
    ("cpt separate", "static"),
    ("cpt separate", "random separate"),
    ("cpt shared", "random shared"),
    ("pattern shared", "random shared"),
    ("two-phase", "static"),
    ("cpt shared", "cpt shuffled"),
)
"""Those of `PAIRS` that differ in what they train on and not in their adapters, and so answer whether the cycle helps."""

NATS = 0.02
"""A difference in the rise of the loss that would matter."""


FLATTER: Mapping[rule.Verdict, str] = {
    "reproduced": "flatter",
    "not reproduced": "not flatter",
    "undecided": "undecided at this size",
}
"""What a verdict says of a minimum that is claimed to be flatter than another."""


def agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """Whether each question got the same answer from one model at two precisions.

    Args:
        scores: with `prediction`.

    Returns:
        One row a model, pair of precisions, seed and question: `model`, `precision` (as `8 and 4`), `seed`, `id`,
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
    """The training loss at every return of a cycle to the highest precision that the training takes.

    Args:
        curves: `model`, `seed`, `step`, `w_bits`, `span_loss`; methods that are not `CYCLING` are left out.

    Returns:
        One row a method and return, means of its trainings: `model`, `cycle` (from 1), `w_bits` and `steps` there (with
        those of a second phase at these bits), `loss` of these, `way` (of the lower steps since the last return, nats),
        `change` of `loss` from the last return; and in how many of `seeds` trainings it was `below_way` and `below_last`.
    """
    rows = curves[curves["model"].isin(CYCLING)]
    training = [rows["model"], rows["seed"]]
    top = rows["w_bits"] == rows["w_bits"].groupby(training).transform("max")
    arrives = top & ~top.groupby(training).shift(fill_value=False)
    cycle = arrives.groupby(training).cumsum() + ~top  # the way to a return is of its cycle
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
    """The rise in loss and the change in F1 of each question, mean of all directions and of radii that `precision` has not."""
    keys = ["model", "precision", "seed", "id", "paragraph"]
    return sharpness.groupby(keys, sort=False, as_index=False)[["loss_change", "f1_change"]].mean()


def flatness(sharpness: pd.DataFrame, model: str, others: Sequence[str], **options: Any) -> pd.DataFrame:
    """Whether a method's minimum is flatter than others' at the same precision, by the interval of the rise in loss.

    Args:
        sharpness: of `Cyclic.trained`; its radii are taken together.
        options: of `qatlib.judging.results.paired`.

    Returns:
        One row another method and precision: `model`, `over`, `precision`, `difference` in rise (nats, with `_low`, `_high`;
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
    """Scores of the models that answered at a precision outside `precisions`, at all of theirs."""
    elsewhere = scores.loc[~scores["precision"].isin(precisions), "model"]
    return scores[scores["model"].isin(elsewhere)].reset_index(drop=True)


def at_equal_bitops(scores: pd.DataFrame, methods: Sequence[str], precisions: Sequence[str]) -> pd.DataFrame:
    """Scores of trainings at the bit operations of static training at the widest precision, and of that one.

    Args:
        scores: of `qatlib.studies.cyclic.Cyclic.trained`.
        methods: what was trained at equal passes, which is left out; `static` at the widest takes as many bit operations.
        precisions: what was cycled through, the widest first.

    Returns:
        Rows of `scores`; none where nothing was trained again at equal bit operations.
    """
    again = ~scores["model"].isin(methods)
    widest = (scores["model"] == "static") & (scores["precision"] == precisions[0])
    rows = scores[(again | widest) & scores["precision"].isin(precisions)].reset_index(drop=True)
    return rows if (rows["model"] != "static").any() else rows[:0]


def falls(returned: pd.DataFrame) -> str:
    """One sentence: at how many returns to the highest precision each method's loss is below that of the return before.

    Args:
        returned: of `returns`.
    """
    on = returned.dropna(subset="change").groupby("model", sort=False)[["below_last", "seeds"]].sum()
    fell = [f"{model} at {lower} of {n} returns" for model, lower, n in on.itertuples()] or ["none, which returns once"]
    return f"Training loss at the highest precision is lower than at the return before, of {', '.join(fell)}."


def least_agreement(same: pd.DataFrame, model: str) -> str:
    """How often a model gives the same answer at the two precisions that agree least, and the best of the others; in words.

    Args:
        same: `results.mean_table` of `agreement`. `static` is left out: it is another training at each precision.

    Returns:
        Empty where only `static` was trained.
    """
    least = same[same["model"] != "static"].sort_values("same", kind="stable").drop_duplicates("model").set_index("model")
    best = least.drop(index=model, errors="ignore")["same"].nlargest(1).index
    parts = []
    for name in (name for name in (model, *best) if name in least.index):
        share, low, high = least.loc[name, ["same", "same_low", "same_high"]]
        parts.append(f"{name} {share:.0f} % [{low:.0f}, {high:.0f}] (at {least.loc[name, 'precision']})")
    return "Same answers at the two precisions that agree least: " + "; best of the others ".join(parts) if parts else ""
