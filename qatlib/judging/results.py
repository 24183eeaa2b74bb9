"""The schema of the result files, and tables made only from these files.

Scores are kept per question and per paragraph, so any two models can be compared in pairs later:

    scores       model, precision, seed, id, paragraph, em, f1, loss        em and f1 in percent, loss in nats
    perplexity   model, precision, seed, paragraph, nll, tokens, correct    nll summed over the tokens, in nats; correct:
                                                                            number of tokens predicted right;
                                                                            divergence, where measured: nats, summed

`w_bits` and `a_bits` accompany `precision`. Named configurations have no single width, and so lack these columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from qatlib.judging import stats
from qatlib.precision import Precision


class Cell(NamedTuple):
    """One model at one precision: the columns `model` and `precision` of the result files."""

    model: str
    precision: str


def pick(frame: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """The rows of one model at one precision, in file order.

    Raises:
        KeyError: there are none.
    """
    rows = frame[(frame["model"] == cell.model) & (frame["precision"].astype(str) == cell.precision)]
    if rows.empty:
        raise KeyError(f"no results of {cell.model} at {cell.precision}")
    return rows.reset_index(drop=True)


def cells(frame: pd.DataFrame) -> list[Cell]:
    """Models and precisions, in order of appearance."""
    unique = frame[["model", "precision"]].astype(str).drop_duplicates()
    return [Cell(*row) for row in unique.itertuples(index=False)]


def widths(frame: pd.DataFrame) -> dict[str, Precision]:
    """The widths of every `precision` in a frame, in order of appearance. Rows without widths are left out.

    Raises:
        KeyError: the frame has no columns `w_bits` and `a_bits`.
    """
    unique = frame[["precision", "w_bits", "a_bits"]].dropna().drop_duplicates()
    return {str(name): Precision(int(w_bits), int(a_bits)) for name, w_bits, a_bits in unique.itertuples(index=False)}


def interval(name: str, estimate: stats.Estimate) -> dict[str, float]:
    """An estimate as columns of a table: `name`, and its bounds `name_low` and `name_high`."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def intervals(estimates: Mapping[str, stats.Estimate]) -> dict[str, float]:
    """Several estimates as columns, by name."""
    return {column: value for name, estimate in estimates.items() for column, value in interval(name, estimate).items()}


_PERCENT = {"f1", "em", "success", "same"}
_POINTS = {"drop", "gain"}


def ends(metric: str, difference: bool = False) -> tuple[float, float] | None:
    """The ends of the scale of a metric in percent (or points), or of differences in such a metric. None for other metrics."""
    kind = metric.rpartition("_")[2]
    if kind not in _PERCENT | _POINTS:
        return None
    return (-100.0, 100.0) if difference or kind in _POINTS else (0.0, 100.0)


def mean_of(scores: pd.DataFrame, cell: Cell, metric: str, **options: Any) -> stats.Estimate:
    """Mean of `metric` in a cell, bootstrapped by paragraph and seed."""
    mine = pick(scores, cell)
    return stats.mean(mine[metric], mine["paragraph"], seeds=mine["seed"], ends=ends(metric), **options)


def paired(scores: pd.DataFrame, cell: Cell, reference: Cell, metric: str, **options: Any) -> stats.Estimate:
    """Mean difference of `metric` between two cells on the same questions, bootstrapped by paragraph and seed.

    A training is paired with the training of the same seed, or with the only training of the other cell.

    Args:
        metric: a column of `scores`, or `perplexity` or `divergence`. The difference of `perplexity` is in percent of the
            reference; that of `divergence` in nats per token.

    Raises:
        ValueError: the two were not measured on the same questions, or text.
    """
    mine, other = pick(scores, cell), pick(scores, reference)
    if mine["seed"].nunique() == 1:
        mine = pd.concat([mine.assign(seed=seed) for seed in other["seed"].unique()], ignore_index=True)
    if metric in ("perplexity", "divergence"):
        column = "nll" if metric == "perplexity" else metric
        over, tokens = (_beside(mine, other, "paragraph", name) for name in (column, "tokens"))
        if over is None or tokens is None or not np.array_equal(mine["tokens"], tokens):
            raise ValueError(f"{cell} and {reference} were measured on different text: no paired change")
        options |= {"seeds": mine["seed"]}
        if metric == "divergence":
            return stats.ratio(mine[column] - over, mine["tokens"], mine["paragraph"], **options)
        ratio = stats.perplexity_ratio(mine[column], over, mine["tokens"], mine["paragraph"], **options)
        return replace(ratio, **{side: 100 * (getattr(ratio, side) - 1) for side in ("value", "low", "high")})
    against = _beside(mine, other, "id", metric)
    if against is None:
        raise ValueError(f"{cell} and {reference} answer different questions: no paired difference")
    apart = None if _alike(mine, other) else ends(metric, difference=True)
    return stats.mean(mine[metric] - against, mine["paragraph"], seeds=mine["seed"], ends=apart, **options)


def _alike(mine: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two cells are the same model: their losses on every question are equal to the last bit."""
    beside = _beside(mine, other, "id", "loss") if "loss" in mine and "loss" in other else None
    return beside is not None and np.array_equal(mine["loss"], beside, equal_nan=True)


def _beside(mine: pd.DataFrame, other: pd.DataFrame, key: str, column: str) -> np.ndarray | None:
    """`other`'s values in the order of `mine`, from the same seed or from the only seed. None if some rows have no pair."""
    keys = [key] if other["seed"].nunique() == 1 else ["seed", key]
    pairs = other.set_index(keys)[column].reindex(pd.MultiIndex.from_frame(mine[keys]) if len(keys) > 1 else mine[key])
    if set(other[key]) != set(mine[key]) or not pairs.index.isin(other.set_index(keys).index).all():
        return None
    return pairs.to_numpy()


def accuracy_table(scores: pd.DataFrame, reference: Cell, **options: Any) -> pd.DataFrame:
    """F1 and EM of every cell, and their paired changes from the reference. Intervals are by paragraph.

    Args:
        scores: rows in the `scores` schema.
        reference: the cell that changes are relative to.
        options: `resamples`, `confidence`, `seed` of `stats.cluster_bootstrap`.

    Returns:
        One row per cell: `model`, `precision`, `f1`, `em`, `f1_change`, `em_change` (points, each with `_low`, `_high`),
        `f1_kept` (percent of the reference's F1, likewise), `loss`, `n`, `paragraphs`, `seeds`.

    Raises:
        ValueError: a cell has other questions than the reference.
    """
    rows = []
    for cell in cells(scores):
        mine = pick(scores, cell)
        row: dict[str, Any] = cell._asdict()
        for metric in ("f1", "em"):
            row |= interval(metric, mean_of(scores, cell, metric, **options))
        for metric in ("f1", "em"):
            row |= interval(f"{metric}_change", paired(scores, cell, reference, metric, **options))
        share = kept(scores, cell, reference, **options)
        row |= interval("f1_kept", share)
        row["loss"] = mine["loss"].mean()
        rows.append(row | {"n": share.n, "paragraphs": share.clusters, "seeds": share.seeds})
    return pd.DataFrame(rows)


def kept(scores: pd.DataFrame, cell: Cell, reference: Cell, **options: Any) -> stats.Estimate:
    """A cell's F1 in percent of the reference's F1, on the same questions.

    Raises:
        ValueError: as `paired`.
    """
    mine, other = pick(scores, cell), pick(scores, reference)
    against = _beside(mine, other, "id", "f1")
    if against is None:
        raise ValueError(f"{cell} and {reference} answer different questions: no share kept")
    share = stats.cluster_bootstrap([mine["f1"], against], mine["paragraph"], _percent, seeds=mine["seed"], **options)
    alike, nothing = np.array_equal(mine["f1"], against), not mine["f1"].any()
    if not (alike or nothing) or _alike(mine, other):
        return share
    room = float(_percent(100 * stats.unseen(share.clusters, options.get("confidence", 0.95)), against.mean()))
    return replace(share, low=share.value - room * alike, high=share.value + room)


def _percent(part: Any, whole: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 gives NaN
        return 100 * np.divide(part, whole)


def perplexity_table(perplexities: pd.DataFrame, reference: Cell, **options: Any) -> pd.DataFrame:
    """Perplexity of every cell and its paired change from the reference in percent.

    Returns:
        One row per cell: `model`, `precision`, `perplexity`, `perplexity_change` (percent), `token_accuracy` (percent of tokens
        that the model found most probable), `divergence` (nats per token, where it was measured; each with `_low`, `_high`),
        `tokens`, `paragraphs`, `seeds`.
    """
    rows = []
    for cell in cells(perplexities):
        mine = pick(perplexities, cell)
        of = options | {"seeds": mine["seed"]}
        figures = {
            "perplexity": stats.perplexity(mine["nll"], mine["tokens"], mine["paragraph"], **of),
            "perplexity_change": paired(perplexities, cell, reference, "perplexity", **options),
            "token_accuracy": stats.percentage(mine["correct"], mine["tokens"], mine["paragraph"], **of),
        }
        if "divergence" in perplexities:
            figures["divergence"] = stats.ratio(mine["divergence"], mine["tokens"], mine["paragraph"], **of)
        row = cell._asdict() | {key: x for name, found in figures.items() for key, x in interval(name, found).items()}
        seeds = mine["seed"].nunique()
        rows.append(row | {"tokens": int(mine["tokens"].sum()) // seeds, "paragraphs": len(mine) // seeds, "seeds": seeds})
    return pd.DataFrame(rows)


def gaps(scores: pd.DataFrame, model: str, over: str, metric: str, **options: Any) -> Iterator[tuple[str, stats.Estimate]]:
    """(precision, estimate) of `model` minus `over`, paired, at every precision at which both were measured."""
    known = set(cells(scores))
    for cell in (c for c in cells(scores) if c.model == model and Cell(over, c.precision) in known):
        yield cell.precision, paired(scores, cell, Cell(over, cell.precision), metric, **options)


def gap_table(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]], metric: str, **options: Any) -> pd.DataFrame:
    """Paired differences between two models at every precision at which both were measured.

    Args:
        pairs: names of two models. The second is the reference.
        metric: as in `paired`.

    Returns:
        One row per pair and precision: `model`, `over` (the second), `precision` (with `w_bits` and `a_bits` where `scores` have
        them), `difference` (`model` minus `over`, in the metric's unit, with `_low`, `_high`), `p` (Holm-corrected within the
        table), `n`, `paragraphs`, `seeds`.
    """
    rows, known = [], widths(scores) if "w_bits" in scores else {}
    for model, over in pairs:
        for precision, gap in gaps(scores, model, over, metric, **options):
            row = {"model": model, "over": over, "precision": precision, **interval("difference", gap), "p": gap.p}
            row |= known[precision]._asdict() if precision in known else {}
            rows.append(row | {"n": gap.n, "paragraphs": gap.clusters, "seeds": gap.seeds})
    columns = ["model", "over", "precision", *(Precision._fields if known else ())]
    columns += ["difference", "difference_low", "difference_high", "p", "n", "paragraphs", "seeds"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p=stats.holm(table["p"].tolist()))


def mean_table(scores: pd.DataFrame, metrics: Sequence[str], **options: Any) -> pd.DataFrame:
    """Means of every cell, with intervals by paragraph.

    Returns:
        One row per cell: `model`, `precision`, each metric in its own unit with `_low` and `_high`, `n`, `paragraphs`.
    """
    rows = []
    for cell in cells(scores):
        row: dict[str, Any] = dict(cell._asdict())
        for metric in metrics:
            found = mean_of(scores, cell, metric, **options)
            row |= interval(metric, found)
        rows.append(row | {"n": found.n, "paragraphs": found.clusters})
    return pd.DataFrame(rows)


def seed_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Spread of trainings that differ only in their seed.

    Returns:
        One row per cell: `model`, `precision`, `seeds` (how many), `lowest`, `highest` and `range` of their mean F1 (percent).
    """
    by_seed = scores.groupby(["model", "precision", "seed"], sort=False)["f1"].mean().unstack()
    table = pd.DataFrame({"seeds": by_seed.count(axis=1), "lowest": by_seed.min(axis=1), "highest": by_seed.max(axis=1)})
    return table.assign(range=table["highest"] - table["lowest"]).reset_index()


def readable(table: pd.DataFrame, leave_out: Sequence[str] = (), digits: int = 1) -> pd.DataFrame:
    """Format a table for the page: every `x`, `x_low`, `x_high` as one column `value [low, high]`, and names in words.

    `w_bits` and `a_bits` are left out beside `precision`, which contains the same information.
    """
    shown = table.drop(columns=list(leave_out))
    shown = shown.drop(columns=list(Precision._fields), errors="ignore") if "precision" in shown else shown
    for name in [c for c in table if f"{c}_low" in table and c in shown]:
        triples = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
        texts = ("{} [{}, {}]".format(*(_number(x, digits) for x in triple)) for triple in triples)
        shown[name] = ["–" if text.startswith("nan") else text.replace("-", "−") for text in texts]
        shown = shown.drop(columns=[f"{name}_low", f"{name}_high"])
    if "p" in shown:
        shown["p"] = [f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in shown["p"]]
    words = {"f1": "F1", "em": "EM"}
    shown.columns = [" ".join(words.get(part, part) for part in str(c).split("_")) for c in shown]
    return shown


def _number(x: float, digits: int) -> str:
    return f"{x:z.{digits}f}" if abs(x) < 1e5 else f"{x:.1e}"  # perplexity of a destroyed model


def in_words(table: pd.DataFrame, name: str, digits: int = 1) -> str:
    """One column with its interval, signed, at every precision: `8: +0.1 [−0.2, +0.4]; 4: …`."""
    columns = zip(table["precision"], table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
    return "; ".join(f"{p}: {signed(value, low, high, digits)}" for p, value, low, high in columns)


def signed(value: float, low: float, high: float, digits: int = 1) -> str:
    """A difference with its interval: `+0.1 [−0.2, +0.4]`."""
    return stats.with_interval(value, low, high, f"+z.{digits}f")
