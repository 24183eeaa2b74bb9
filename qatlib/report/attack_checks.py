"""The twelve checks on notebook 5's attacks, from its scores; what each must be is in `qatlib.attacks.checks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from qatlib.arguments import AttackArguments
from qatlib.attacks.checks import Check, about_zero, above_zero, broken, not_below_zero
from qatlib.attacks.scores import Set, contrast, mean_of, most_robust, select, set_name
from qatlib.stats import Estimate


def main_checks(complete: pd.DataFrame, sets: Sequence[Set], control: Set, **options: Any) -> list[Check]:
    """Checks 1, 2, 3, 5 and 9 to 11, of the attacks at every precision.

    Args:
        complete: rows for `none`, `noise`, `PGD at …`, `EOT …` and `worst` over those, answered at every precision and by RPI.
    """

    def gap(a: pd.DataFrame, b: pd.DataFrame) -> Estimate:
        return contrast(a, b, **options)

    def mean(a: pd.DataFrame) -> Estimate:
        return mean_of(a, **options)

    widths = [a.removeprefix("PGD at ") for a in complete["attack"].unique() if a.startswith("PGD at ")]
    drawn = [p.name for p in sets[0]]
    rpi, eot = f"RPI {set_name(sets[0])}", f"EOT {set_name(sets[0])}"
    clean, worst = select(complete, rpi, "none"), select(complete, rpi, "worst")
    known = f"threat model: the precisions {set_name(sets[0])} are known and equally likely, the draw is not, and new each time"
    checks = [Check(1, known), Check(2, f"clean F1 of {rpi}, with the same draws", mean(clean))]
    for p in widths:
        own = select(complete, p, f"PGD at {p}")
        checks.append(
            above_zero(2, f"at {p} bits PGD costs more than noise of equal norm", gap(select(complete, p, "noise"), own))
        )
        checks.append(above_zero(3, f"at {p} bits, fixed, PGD costs F1", gap(select(complete, p, "none"), own)))
    for p in drawn:
        beyond = gap(select(complete, rpi, f"PGD at {p}"), select(complete, rpi, eot))
        checks.append(not_below_zero(5, f"{eot} hurts {rpi} no less than PGD at {p} does", beyond))
    checks.append(Check(9, f"F1 of {rpi}, each question under its worst attack", mean(worst)))
    right = worst[worst["id"].isin(clean.loc[clean["em"] == 100, "id"])]
    if right["paragraph"].nunique() > 1:
        checks.append(Check(9, "the same over questions that every draw answers right without an attack", mean(right)))
    static = most_robust(complete, widths, "worst", clean["f1"].mean() - 1)
    best = select(complete, static, "worst")
    words = f"the most robust static precision of equal clean F1, {static} bits"
    checks.append(Check(10, f"{rpi}, expected over its draws, over {words}", gap(worst, best)))
    draws = complete[complete["answered"].isin(drawn) & (complete["attack"] == "worst")]
    lowest = draws.groupby(["id", "paragraph"])[["f1"]].min().reset_index()
    checks.append(Check(10, f"{rpi} at each question's worst draw over the same", gap(lowest, best)))
    same = most_robust(complete, [p.name for p in control], "worst", 0)
    gained = gap(select(complete, f"RPI {set_name(control)}", "worst"), select(complete, same, "worst"))
    checks.append(about_zero(11, f"RPI {set_name(control)}, precisions alike, gains nothing over static {same}", gained))
    return checks


def variation_checks(
    variations: pd.DataFrame,
    gradients: pd.DataFrame,
    complete: pd.DataFrame,
    twin: pd.DataFrame,
    at: str,
    attack: AttackArguments,
    **options: Any,
) -> list[Check]:
    """The sanity of the attack itself (0), and checks 4, 6, 7, 8 and 12, at one static precision.

    Args:
        variations, gradients, twin: of `Robustness.variations`, `.gradients` and `.from_outside`.
        at: the precision.
    """

    def gap(a: pd.DataFrame, b: pd.DataFrame) -> Estimate:
        return contrast(a, b, **options)

    def mean(a: pd.DataFrame) -> Estimate:
        return mean_of(a, **options)

    tried = {name: select(variations, at, name) for name in variations["attack"].unique()}
    radii = sorted((name for name in tried if ", ε " in name), key=lambda name: float(name.split()[-1]))
    checks = [not_below_zero(0, "PGD costs no less than FGSM", gap(tried["FGSM"], tried["PGD"]))]
    for small, large in zip(radii, radii[1:], strict=False):
        checks.append(not_below_zero(0, f"{large} costs no less than {small}", gap(tried[small], tried[large])))
    checks.append(broken(0, f"F1 under {radii[-1]}, which nothing should survive", mean(tried[radii[-1]])))
    own = select(complete, at, f"PGD at {at}")
    apart = gap(select(twin, at, "twin"), own)
    checks.append(Check(4, f"attacked through a model trained apart: F1 above that under its own attack, {at} bits", apart))
    least, where = min(zip(gradients["nonzero"], gradients["precision"], strict=True))
    checks.append(Check(6, f"least share of non-zero input gradients: {least:.1f} %, at {where} bits", holds=least > 90))
    if at != "32" and "PGD at 32" in set(complete["attack"]):
        beyond = gap(select(complete, at, "PGD at 32"), own)
        checks.append(not_below_zero(6, f"the gradient at {at} bits is no weaker than a full-precision surrogate's", beyond))
    for name in ("twice the steps", "twice the restarts", "margin loss"):
        checks.append(about_zero(7, f"{name}: F1 that it takes beyond PGD's", gap(tried["PGD"], tried[f"PGD, {name}"])))
    searched = gap(tried["random search"], tried["PGD"])
    checks.append(not_below_zero(8, "a gradient-free attack with as many passes does not win", searched))
    cost = (
        f"ε {attack.epsilon:g} ({attack.norm}), {attack.steps} steps, {attack.restarts} restarts: {attack.passes} passes a window"
    )
    return [*checks, Check(12, f"cost: {cost} and precision; the ids of the questions are in attacked.csv")]
