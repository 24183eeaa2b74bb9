"""Random against static precision: the attack each side of a comparison faces, and the gain of random precisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd

from qatlib.attacks.defence import Set, set_name
from qatlib.judging import results, stats
from qatlib.judging.attack_scores import attack_with, best_static, contrast, own_attack, select
from qatlib.precision import Precision
from qatlib.studies.attackers import ABOUT

Attacker = Literal["none", "transfer", "adaptive", "one draw", "worst"]
"""Who attacks the random side: no attacker; the static side's own; one who averages over the set; S0's, who sees one draw
per step; the worst of all, question by question."""


class Faced(NamedTuple):
    """The attacks that the two sides of one comparison face, by name."""

    attacker: Attacker
    random: str
    static: str


def faced(complete: pd.DataFrame, precisions: Set, static: str) -> list[Faced]:
    """The attacks that RPI over a set and a static precision face, by attacker of RPI.

    The static side always faces its own best attack, PGD at its own precision. EOT would be weaker, as it averages precisions.

    Args:
        complete: the result of `attack_scores.attacked`.
        static: the static precision's name.
    """
    pgd, eot = own_attack(complete, static), own_attack(complete, set_name(precisions))
    none, worst = (attack_with(complete, family=family) for family in ("none", "worst"))
    return [
        Faced("none", none, none),
        Faced("transfer", pgd, pgd),
        Faced("adaptive", eot, pgd),
        Faced("worst", worst, worst),
    ]


def against_static(
    complete: pd.DataFrame, sets: Sequence[Set], control: Set, precisions: Sequence[Precision], **options: Any
) -> pd.DataFrame:
    """RPI over every set, paired with the most robust static precision of equal clean F1 (`attack_scores.best_static`).

    Args:
        complete: the result of `attack_scores.attacked`.
        sets: the sets that RPI draws from, including the control.
        control: a set of similar precisions; it is compared with one of its own precisions.
        precisions: all static precisions.

    Returns:
        `defence`, `over`, `attack` (of the random side, and of the static side if it differs), `difference` in points of F1
        (with `_low` and `_high`), `p` (Holm-corrected over the table), `n`, `attacker` and the description of the random
        side's attack (`ABOUT`).
    """
    rows = []
    for s in sets:
        random = f"RPI {set_name(s)}"
        static = best_static(complete, s, [p.name for p in (s if s == control else precisions)])
        for attacker, how, fixed in faced(complete, s, static):
            mine = select(complete, random, how)
            gap = contrast(mine, select(complete, static, fixed), **options)
            said = how if how == fixed else f"{how} (static: {fixed})"
            row = {"defence": random, "over": f"static {static}", "attack": said, **results.interval("difference", gap)}
            rows.append(row | {"p": gap.p, "n": gap.n, "attacker": attacker} | mine.iloc[0][[*ABOUT]].to_dict())
    table = pd.DataFrame(rows)
    return table.assign(p=stats.holm(table["p"].tolist()))


IN_WORDS: dict[Attacker, str] = {
    "transfer": "transfer: PGD at the static precision",
    "one draw": "one draw a step",
    "adaptive": "adaptive: EOT",
    "worst": "worst attack of each question",
}


def protocols(
    complete: pd.DataFrame, one_draw: pd.DataFrame, precisions: Set, static: str, ids: Sequence[str], **options: Any
) -> pd.DataFrame:
    """Random against one static precision, by attacker of the random side and by number of questions (S0's ten, and all).

    Args:
        complete: the result of `attack_scores.attacked`.
        one_draw: the result of `Robustness.one_draw`: the first study's own defence under its own attacker.
        static: the static precision's name.
        ids: ids of all questions, in order.

    Returns:
        `defence`, `attacker of RPI`, `attacker of static`, `static_drop` and `rpi_drop` (points of F1 lost), `gain`, F1 of
        the random side minus F1 of the static side (points, with `_low` and `_high`), `n`.
    """
    rpi = f"RPI {set_name(precisions)}"
    sides = {f.attacker: (complete, rpi, f) for f in faced(complete, precisions, static)}
    (own,) = one_draw["answered"].unique()
    sides["one draw"] = one_draw, own, Faced("one draw", own_attack(one_draw, own), sides["transfer"][2].static)
    rows = []
    for attacker, said in IN_WORDS.items():
        source, way, (_, how, fixed) = sides[attacker]
        for count in (10, len(ids)):
            few = ids[:: max(1, len(ids) // count)][:count]
            alone, random = (frame[frame["id"].isin(few)] for frame in (complete, source))
            pair = select(alone, static, fixed), select(random, way, how)
            clean = [select(*side, "none")["f1"].mean() for side in ((alone, static), (random, way))]
            drops = [before - after["f1"].mean() for before, after in zip(clean, pair, strict=True)]
            gap = contrast(*pair[::-1], **options)
            row: dict[str, Any] = {"defence": way, "attacker of RPI": said, "attacker of static": fixed}
            row |= {"static_drop": drops[0], "rpi_drop": drops[1]}
            rows.append(row | results.interval("gain", gap) | {"n": gap.n})
    return pd.DataFrame(rows)


def over_each(frame: pd.DataFrame, precisions: Set, static: Sequence[Precision], **options: Any) -> pd.DataFrame:
    """Gain of RPI over each static precision without an attack.

    Args:
        frame: answers, including those of RPI over `precisions` (`attack_scores.with_rpi`).

    Returns:
        `over`, `gain` in points of F1 (with `_low` and `_high`), `n`.
    """
    none = attack_with(frame, family="none")
    random = select(frame, f"RPI {set_name(precisions)}", none)
    gaps = {p.name: contrast(random, select(frame, p.name, none), **options) for p in static}
    return pd.DataFrame([{"over": f"static {name}", **results.interval("gain", gap), "n": gap.n} for name, gap in gaps.items()])
