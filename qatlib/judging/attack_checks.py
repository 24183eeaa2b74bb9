"""The twelve checks on notebook 5's attacks, computed from its scores. Their pass rules are in `qatlib.judging.attack_rules`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from qatlib.attacks.defence import Set, set_name
from qatlib.judging.attack_rules import TOLERANCE, Check, about_zero, above_zero, broken, not_below_zero, passes
from qatlib.judging.attack_scores import about, attack_with, best_static, contrast, gradient_attacks, mean_of, own_attack, select
from qatlib.judging.results import intervals
from qatlib.judging.stats import Estimate
from qatlib.params.attacks import Adversarial
from qatlib.precision import FULL_PRECISION, Precision
from qatlib.studies.attackers import SEARCHED

ROUNDING = 1e-4
"""Allowed difference of a figure that is computed in another order."""

BELIEVABLE = 20
"""Mixed configurations per step that an attacker on per-layer draws must average over to be believable."""

STRONGER = {
    "steps": "twice the steps",
    "restarts": "twice the restarts",
    "objective": "margin loss",
    "arithmetic": "in fp32",
}
"""Variations by the column `varied`, in words. They must not leave less F1 than the params' own attack (check 7)."""


def main_checks(
    complete: pd.DataFrame,
    reach: pd.DataFrame,
    precisions: Sequence[Precision],
    sets: Sequence[Set],
    control: Set,
    **options: Any,
) -> list[Check]:
    """Checks 1, 2, 3, 5 and 9 to 11, for the attacks at every precision.

    Args:
        complete: rows for `none`, `noise`, `PGD at …`, `EOT …` and `worst` over those, answered at every precision and by RPI.
        reach: the result of `Variations.reach`.
        precisions: all precisions.
    """

    def gap(a: pd.DataFrame, b: pd.DataFrame) -> Estimate:
        return contrast(a, b, **options)

    def mean(a: pd.DataFrame) -> Estimate:
        return mean_of(a, **options)

    widths, drawn = [p.name for p in precisions], [p.name for p in sets[0]]
    rpi, eot = f"RPI {set_name(sets[0])}", own_attack(complete, set_name(sets[0]))
    noise = attack_with(complete, family="noise")
    clean, worst = select(complete, rpi, "none"), select(complete, rpi, "worst")
    known = f"threat model: the precisions {set_name(sets[0])} are known and equally likely, the draw is not, and new each time"
    moved, others = reach[["moved", "others"]].iloc[0]
    within = f"PGD moves context tokens by {moved:.3g} ε at most, tokens of the question and of answers by {others:g}"
    checks = [Check(1, known), Check(1, within, verdict=passes(moved <= 1 + ROUNDING and others == 0))]
    checks.append(Check(2, f"clean F1 of {rpi}, with the same draws", mean(clean)))
    for p in widths:
        own = select(complete, p, own_attack(complete, p))
        checks.append(above_zero(2, f"at {p} bits PGD costs more than noise of equal norm", gap(select(complete, p, noise), own)))
        checks.append(above_zero(3, f"at {p} bits, fixed, PGD costs F1", gap(select(complete, p, "none"), own)))
    for p in drawn:
        beyond = gap(select(complete, rpi, own_attack(complete, p)), select(complete, rpi, eot))
        checks.append(not_below_zero(5, f"{eot} hurts {rpi} no less than PGD at {p} does", beyond))
    single = [select(complete, rpi, a)["f1"].mean() for a in gradient_attacks(complete)]
    lowest_alone = (
        f"F1 of {rpi}, each question under its worst attack; under the strongest alone {min(single):.1f}, no less by arithmetic"
    )
    checks.append(Check(9, lowest_alone, mean(worst), passes(worst["f1"].mean() <= min(single) + ROUNDING)))
    right = worst[worst["id"].isin(clean.loc[clean["em"] == 100, "id"])]
    if right["paragraph"].nunique() > 1:
        checks.append(Check(9, "the same over questions that every draw answers right without an attack", mean(right)))
    static = best_static(complete, sets[0], widths)
    best = select(complete, static, "worst")
    ahead = gap(clean, select(complete, static, "none"))
    alike = f"static {static}, the most robust of its like, has no less clean F1 than {rpi} by more than a point"
    checks.append(Check(10, alike, ahead, passes(ahead.value <= TOLERANCE)))
    checks.append(Check(10, f"{rpi}, expected over its draws, over static {static}", gap(worst, best)))
    draws = complete[complete["answered"].isin(drawn) & (complete["attack"] == "worst")]
    lowest = draws.groupby(["id", "paragraph"])[["f1"]].min().reset_index()
    checks.append(Check(10, f"{rpi} at each question's worst draw over static {static}", gap(lowest, best)))
    same = best_static(complete, control, [p.name for p in control])
    gained = gap(select(complete, f"RPI {set_name(control)}", "worst"), select(complete, same, "worst"))
    checks.append(about_zero(11, f"RPI {set_name(control)}, precisions alike, gains nothing over static {same}", gained))
    return checks


def variation_checks(variations: pd.DataFrame, complete: pd.DataFrame, at: str, **options: Any) -> list[Check]:
    """Check 0 (is the attack itself sound) and checks 6 to 8, at one static precision.

    Args:
        variations: the result of `Variations.static_variants`.
        at: the precision.
    """

    def gap(a: pd.DataFrame, b: pd.DataFrame) -> Estimate:
        return contrast(a, b, **options)

    def mean(a: pd.DataFrame) -> Estimate:
        return mean_of(a, **options)

    tried = {name: select(variations, at, name) for name in variations["attack"].unique()}
    pgd = tried[own_attack(variations, at)]
    fgsm = tried[attack_with(variations, family="gradient", varied="one step")]
    radii = variations[variations["varied"] == "epsilon"].sort_values("epsilon", kind="stable")["attack"].unique().tolist()
    bits = f"{at} bits, "
    checks = [not_below_zero(0, f"{bits}PGD costs no less than FGSM", gap(fgsm, pgd))]
    for small, large in zip(radii, radii[1:], strict=False):
        checks.append(not_below_zero(0, f"{bits}{large} costs no less than {small}", gap(tried[small], tried[large])))
    checks.append(broken(0, f"{bits}F1 under {radii[-1]}, which nothing should survive", mean(tried[radii[-1]])))
    own, full = select(complete, at, own_attack(complete, at)), FULL_PRECISION.name
    if at != full and full in set(complete["target"]):
        beyond = gap(select(complete, at, own_attack(complete, full)), own)
        checks.append(not_below_zero(6, f"the gradient at {at} bits is no weaker than a full-precision surrogate's", beyond))
    for varied, said in STRONGER.items():
        if varied in set(variations["varied"]):
            stronger = tried[attack_with(variations, family="gradient", varied=varied)]
            checks.append(not_below_zero(7, f"{bits}{said}: no less F1 is left than by PGD", gap(stronger, pgd)))
    found = tried[attack_with(variations, family="search")]
    times = f"{found['passes'].iloc[0] / pgd['passes'].iloc[0]:g} times the passes"
    searched, spent = gap(found, pgd), gap(tried["none"], found).value
    search = f"a gradient-free attack, random search with {times}, which costs {spent:.1f}"
    checks.append(not_below_zero(8, f"{bits}{search}, does not win", searched))
    return checks


def outside_checks(gradients: pd.DataFrame, twin: pd.DataFrame, complete: pd.DataFrame, at: str, **options: Any) -> list[Check]:
    """Check 4 at one static precision, and check 6 at all precisions.

    Args:
        gradients, twin: the results of `Variations.gradients` and `Robustness.from_outside`.
        at: the precision that the twin was attacked at.
    """
    outside, own = attack_with(twin, family="gradient"), own_attack(complete, at)
    apart = contrast(select(twin, at, outside), select(complete, at, own), **options)
    least, where = min(zip(gradients["nonzero"], gradients["precision"], strict=True))
    share = f"least share of non-zero input gradients at any precision: {least:.1f} %, at {where} bits"
    return [
        not_below_zero(4, f"{at} bits, an attack through a model trained apart does not beat its own", apart),
        Check(6, share, verdict=passes(least > 90)),
    ]


def adaptive_checks(
    complete: pd.DataFrame,
    variants: pd.DataFrame,
    finer: pd.DataFrame,
    rounding: pd.DataFrame,
    precisions: Set,
    draws: int,
    **options: Any,
) -> list[Check]:
    """Checks 5, 7, 8 and 11, for stronger attackers on the first set and for plain noise instead of random precision.

    Args:
        complete: as in `main_checks`.
        variants, finer, rounding: the results of `Variations.adaptive_variants` (with RPI among the answers),
            `Robustness.drawn_finer` and `Robustness.rounded_noisily`.
        draws: mixed configurations per step of the attacker in `finer`.
    """
    rpi, eot = f"RPI {set_name(precisions)}", own_attack(complete, set_name(precisions))
    searched = attack_with(variants, family="search")
    others = {"search": searched} | {
        varied: attack_with(variants, family="gradient", varied=varied) for varied in ("objective", "steps")
    }
    left = {kind: select(variants, rpi, name) for kind, name in others.items()}
    apart = {kind: contrast(rows, select(complete, rpi, eot), **options) for kind, rows in left.items()}
    spent = contrast(select(complete, rpi, "none"), left["search"], **options).value
    uniform = own_attack(finer, "per batch")
    gains = {
        way: contrast(select(finer, way, uniform), select(finer, way, own_attack(finer, way)), **options)
        for way in ("per layer", "per token")
    }
    few = "" if draws >= BELIEVABLE else f" (a believable evaluation takes {BELIEVABLE})"
    sampled = f"EOT over {draws} such draws a step{few} hurts no less than over uniform ones"
    table = noise_table(complete, rounding, precisions, **options)
    clean = dict(zip(table["defence"], table["clean_f1"], strict=True))
    nearest = min(rounding["answered"].unique(), key=lambda name: abs(clean[name] - clean[rpi]))
    faced = (own_attack(rounding, target) for target in (set_name(precisions), nearest))
    attack = min(faced, key=lambda name: select(rounding, nearest, name)["f1"].mean())
    over = contrast(select(complete, rpi, eot), select(rounding, nearest, attack), **options)
    costs = f"clean F1 {clean[rpi]:.1f} and {clean[nearest]:.1f}"
    return [
        not_below_zero(5, f"{eot} hurts {rpi} no less by cross-entropy than by the margin loss", apart["objective"]),
        not_below_zero(5, f"where layers draw, {sampled}", gains["per layer"]),
        not_below_zero(5, f"where tokens draw, {sampled}", gains["per token"]),
        not_below_zero(7, f"{rpi}, twice the steps: no less F1 is left than by {eot}", apart["steps"]),
        not_below_zero(8, f"{rpi}, a gradient-free attack, {searched}, which costs {spent:.1f}, does not win", apart["search"]),
        Check(11, f"{rpi} under {eot} over rounding with {nearest} bits under {attack}; {costs}", over),
    ]


def longer_attack(variations: Mapping[str, pd.DataFrame], variants: pd.DataFrame, precisions: Set, **options: Any) -> list[Check]:
    """RPI's gain over single precisions when each side faces the longer attack of check 7 made against it.

    Args:
        variations: results of `Variations.static_variants`, by the precision's name.
        variants: as in `adaptive_checks`.
    """
    rpi, longer = f"RPI {set_name(precisions)}", {"family": "gradient", "varied": "steps"}
    random = select(variants, rpi, attack_with(variants, **longer))
    gaps = {at: contrast(random, select(tried, at, attack_with(tried, **longer)), **options) for at, tried in variations.items()}
    return [Check(7, f"{rpi} over {at} bits, EOT and PGD with {STRONGER['steps']}", gap) for at, gap in gaps.items()]


def noise_table(complete: pd.DataFrame, rounding: pd.DataFrame, precisions: Set, **options: Any) -> pd.DataFrame:
    """RPI, its precisions alone, and these precisions with noisy rounding: without an attack, under EOT, under their own attack.

    All use the questions of `rounding`.

    Returns:
        `defence`, `attack`, `clean_f1` and `f1` in percent, `rpi_gain`, RPI's F1 under EOT minus `f1` in points
        (each with `_low` and `_high`), `n`, and the description of the attack (`ABOUT`).
    """
    rpi, eot, rows = f"RPI {set_name(precisions)}", own_attack(complete, set_name(precisions)), []
    both = pd.concat([complete[complete["id"].isin(rounding["id"])], rounding], ignore_index=True)
    own = {way: own_attack(both, way) for way in (*(p.name for p in precisions), *rounding["answered"].unique())}
    random = select(both, rpi, eot)
    pairs = [(rpi, eot), *((way, attack) for way, mine in own.items() for attack in (eot, mine))]
    for way, attack in pairs:
        clean, under = select(both, way, "none"), select(both, way, attack)
        gap = contrast(random, under, **options)
        found = {"clean_f1": mean_of(clean, **options), "f1": mean_of(under, **options), "rpi_gain": gap}
        rows.append({"defence": way, "attack": attack, **intervals(found), "n": gap.n})
    kinds = about(both).rename(columns={"answered": "defence"})
    return pd.DataFrame(rows).merge(kinds, on=["defence", "attack"], how="left")


def cost_checks(section: Adversarial, words: Mapping[str, float]) -> list[Check]:
    """Check 12: the cost of every attack, with its parameters.

    Args:
        words: for each attack on words, windows passed through the model per question.
    """
    attack, first = section.attack, section.sets[0]
    many, name, passed = len(first), set_name(first), attack.passes
    steps = f"ε {attack.epsilon:g} ({attack.norm}), {attack.steps} steps, restarts: {attack.restarts}"
    flips = section.flips + 1
    costs = [
        f"PGD, {steps}: {passed} passes a window",
        f"EOT {name}, the same: {many * passed} passes a window, {many} a step",
        f"EOT of finer draws, {section.draws} mixed configurations: {section.draws * passed} passes a window",
        f"EOT of draws a token, {section.draws} draws, each a pass at {many} precisions: {section.draws * many * passed} passes",
        f"random search: {SEARCHED * passed} passes a window, over {name} {many * SEARCHED * passed}, forward alone",
        f"HotFlip, {section.flips} tokens: {flips} passes a window, EOT {name} {many * flips}",
        *(f"{aim}: {count:.1f} passes a question, forward alone" for aim, count in words.items()),
    ]
    ids = Check(12, "the ids of the attacked questions are in attacked.csv")
    return [*(Check(12, f"cost of {cost}") for cost in costs), ids]
