"""Scores under attack: one row per attack, way of answering and question. Means over draws and minima over attacks.

Columns: `attack`, a name to display, and its description (`qatlib.studies.attackers.Attack`): `family` (`none` for clean input),
`target`, `epsilon`, `objective`, `steps`, `varied`; `answered`, `id`, `paragraph`, `em` and `f1` in percent, `loss` in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from qatlib.attacks.defence import Set, set_name
from qatlib.attacks.judge import averaged
from qatlib.judging import results, stats
from qatlib.judging.results import interval
from qatlib.judging.stats import Estimate
from qatlib.studies.attackers import ABOUT, Attack

FLOOR = 10.0
"""If F1 under attack is below this percentage, it is near its floor. Differences between defences then have no meaning."""

_OF_ATTACKS = ("attack", *ABOUT, "em", "f1", "loss")
"""Columns whose values depend on the attack. The others say which model answered which question."""


def with_rpi(frame: pd.DataFrame, *sets: Set) -> pd.DataFrame:
    """The frame with answers of RPI added. RPI draws one precision for all layers, so this is exact: `averaged` over each set.

    Its name in `answered` is `RPI {4, 8}`.
    """
    drawn = (averaged(frame, [p.name for p in s], f"RPI {set_name(s)}") for s in sets)
    return pd.concat([frame, *drawn], ignore_index=True)


def worst_over(frame: pd.DataFrame, attacks: Sequence[str], name: str = "worst") -> pd.DataFrame:
    """The lowest F1 over some attacks, for each question and way of answering: a mean of minima, not a minimum of means.

    The family of the result is `worst`.
    """
    chosen = frame[frame["attack"].isin(attacks)]
    keys = [c for c in frame if c not in _OF_ATTACKS]
    low = chosen.groupby(keys, sort=False, as_index=False).agg({"em": "min", "f1": "min", "loss": "max"})
    return low.assign(**Attack(name, "worst").columns)


def drops(frame: pd.DataFrame) -> pd.DataFrame:
    """F1 and EM lost to each attack by each way of answering, compared with no attack. One row per question."""
    keys = [c for c in frame if c not in _OF_ATTACKS]
    clean = frame.loc[frame["family"] == "none", [*keys, "em", "f1"]]
    both = frame[frame["family"] != "none"].merge(clean, on=keys, suffixes=("", "_clean"))
    lost = {f"{metric}_drop": both[f"{metric}_clean"] - both[metric] for metric in ("f1", "em")}
    return both[[*keys, "attack", *ABOUT, "f1", "f1_clean"]].assign(**lost)


def successes(frame: pd.DataFrame, ways: Mapping[str, Sequence[str]], over: Sequence[str] = ()) -> pd.DataFrame:
    """How often an attack makes an answer wrong, among questions that every draw answers fully right without an attack.

    A question counts by the percentage of draws whose answer is no longer fully right. So RPI's loss lies between the losses
    of its precisions.

    Args:
        frame: answers at single precisions.
        ways: name of a way of answering → the precisions it draws from. A single precision is static.
        over: attacks whose strongest, for each question, is added as `worst`. The attacker chooses before the draw.

    Returns:
        `answered`, `attack`, `id`, `paragraph`, `success` in percent.
    """
    keys, parts = ["id", "paragraph"], []
    for name, drawn in ways.items():
        mine = frame[frame["answered"].isin(drawn)]
        lowest = mine[mine["family"] == "none"].groupby("id")["f1"].min()
        mine = mine[(mine["family"] != "none") & mine["id"].isin(lowest.index[lowest == 100])]
        wrong = mine.assign(success=100.0 * (mine["f1"] < 100))
        found = wrong.groupby(["attack", *keys], sort=False, as_index=False)["success"].mean()
        strongest = found[found["attack"].isin(over)].groupby(keys, sort=False, as_index=False)["success"].max()
        parts += [part.assign(answered=name) for part in (found, strongest.assign(attack="worst")) if len(part)]
    columns = ["answered", "attack", *keys, "success"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def success_table(found: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """`successes` as rates with intervals, and the number of questions. Questions from a single paragraph give no row.

    Returns:
        `answered`, `attack`, `success` with `_low` and `_high` in percent, `right_at_first`.
    """
    rows = []
    for (answered, attack), mine in found.groupby(["answered", "attack"], sort=False):
        if mine["paragraph"].nunique() > 1:
            rate = mean_of(mine, "success", **options)
            rows.append({"answered": answered, "attack": attack, **interval("success", rate), "right_at_first": rate.n})
    return pd.DataFrame(rows, columns=["answered", "attack", "success", "success_low", "success_high", "right_at_first"])


def attacked(frame: pd.DataFrame, *sets: Set) -> pd.DataFrame:
    """The frame with RPI over each set added to the answers, and with `worst`: the worst gradient attack on each question."""
    both = with_rpi(frame, *sets)
    return pd.concat([both, worst_over(both, gradient_attacks(both))], ignore_index=True)


def gradient_attacks(frame: pd.DataFrame) -> list[str]:
    """The names of the attacks in a frame that follow a gradient over embeddings. They are found by family, not by name."""
    return list(frame.loc[frame["family"] == "gradient", "attack"].unique())


def attack_with(frame: pd.DataFrame, **columns: str | float) -> str:
    """The name of the attack in a frame with these values in its columns.

    Raises:
        KeyError: no attack has these values, or several attacks do.
    """
    chosen = frame
    for column, value in columns.items():
        chosen = chosen[chosen[column] == value]
    names = chosen["attack"].unique()
    if len(names) != 1:
        said = ", ".join(f"{column} {value}" for column, value in columns.items())
        raise KeyError(f"one attack with {said} is needed, but there are {len(names)}: {', '.join(names) or 'none'}")
    return str(names[0])


def own_attack(frame: pd.DataFrame, target: str) -> str:
    """The name of the params' own attack in a frame, by its target: a precision, a set or a way of drawing.

    Other kinds of attack are not found: their column `varied` differs.

    Raises:
        KeyError: as `attack_with`.
    """
    return attack_with(frame, family="gradient", target=target, varied="nothing")


def best_static(frame: pd.DataFrame, precisions: Set, among: Sequence[str]) -> str:
    """The static precision that RPI over a set is compared with: the one with the highest F1 under `worst`.

    Only precisions whose clean F1 is at most one point below RPI's are considered. If there is none, it is the one with the
    best clean F1.

    Args:
        frame: the result of `attacked`.
    """
    least = select(frame, f"RPI {set_name(precisions)}", "none")["f1"].mean() - 1
    clean = {name: select(frame, name, "none")["f1"].mean() for name in among}
    good = [name for name in among if clean[name] >= least] or [max(clean, key=clean.__getitem__)]
    return max(good, key=lambda name: select(frame, name, "worst")["f1"].mean())


def gains(frame: pd.DataFrame, by: Sequence[str], precisions: Set, among: Sequence[str]) -> pd.DataFrame:
    """The gain of RPI over `best_static` in every group of rows. Both face the worst attack on each question.

    Args:
        frame: answers at single precisions.
        by: columns that define the groups.
        among: the static precisions.

    Returns:
        The columns of `by`, `static`, `id`, `paragraph`, `clean_f1` of RPI, `static_f1` and `rpi_f1` under attack in percent,
        `gain`, their difference in points.
    """
    rpi, keys, parts = f"RPI {set_name(precisions)}", ["id", "paragraph"], []
    for group, mine in frame.groupby([*by]):
        found = attacked(mine, precisions)
        static = best_static(found, precisions, among)
        pair = {"clean_f1": (rpi, "none"), "static_f1": (static, "worst"), "rpi_f1": (rpi, "worst")}
        columns = [select(found, *what).set_index(keys)["f1"].rename(name) for name, what in pair.items()]
        rows = pd.concat(columns, axis=1).reset_index().assign(gain=lambda x: x["rpi_f1"] - x["static_f1"])
        named: dict[str, Any] = dict(zip(by, group, strict=True))
        parts.append(rows.assign(**named, static=static))
    return pd.concat(parts, ignore_index=True)[[*by, "static", *keys, *pair, "gain"]]


def gain_table(found: pd.DataFrame, by: Sequence[str], **options: Any) -> pd.DataFrame:
    """`gains` as means with intervals.

    Returns:
        The columns of `by`, `static`, `clean_f1`, `static_f1`, `rpi_f1` and `gain` (each with `_low` and `_high`), `n`.
    """
    rows = []
    for group, mine in found.groupby([*by, "static"]):
        means = {name: mean_of(mine, name, **options) for name in ("clean_f1", "static_f1", "rpi_f1", "gain")}
        rows.append(dict(zip([*by, "static"], group, strict=True)) | results.intervals(means) | {"n": len(mine)})
    return pd.DataFrame(rows)


def select(frame: pd.DataFrame, answered: str, attack: str) -> pd.DataFrame:
    """The rows of one way of answering under one attack.

    Raises:
        KeyError: there are none.
    """
    rows = frame[(frame["answered"] == answered) & (frame["attack"] == attack)]
    if rows.empty:
        raise KeyError(f"no answers by {answered} under {attack}")
    return rows


def contrast(a: pd.DataFrame, b: pd.DataFrame, metric: str = "f1", **options: Any) -> Estimate:
    """Mean of a − b over the questions (and seeds, if any) that both have, bootstrapped by paragraph.

    Args:
        options: options of `stats.cluster_bootstrap`.
    """
    keys = [c for c in ("seed", "id", "paragraph") if c in a and c in b]
    pair = a[[*keys, metric]].merge(b[[*keys, metric]], on=keys, suffixes=("", "_b"))
    seeds = {"seeds": pair["seed"]} if "seed" in keys else {}
    apart = results.ends(metric, difference=True) if a is not b else None
    return stats.mean(pair[metric] - pair[f"{metric}_b"], pair["paragraph"], ends=apart, **seeds, **options)


def mean_of(a: pd.DataFrame, metric: str = "f1", **options: Any) -> Estimate:
    """Mean over the questions, bootstrapped by paragraph."""
    return stats.mean(a[metric], a["paragraph"], ends=results.ends(metric), **options)


def attack_table(frame: pd.DataFrame, metrics: Sequence[str], **options: Any) -> pd.DataFrame:
    """`results.mean_table` for every way of answering under every attack: `answered`, `attack`, the means, and `ABOUT`."""
    back = {"model": "answered", "precision": "attack"}
    scores = frame.rename(columns={name: column for column, name in back.items()}).assign(seed=0)
    table = results.mean_table(scores, metrics, **options).rename(columns=back)
    return table.merge(about(frame), on=["answered", "attack"], how="left")


def about(frame: pd.DataFrame) -> pd.DataFrame:
    """Description of each attack that a way of answering faces: `answered`, `attack` and the columns `ABOUT`."""
    return frame.drop_duplicates(["answered", "attack"])[["answered", "attack", *ABOUT]]
