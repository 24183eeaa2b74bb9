"""The twelve checks on a model of the smoke profile."""

from __future__ import annotations

import pandas as pd
import pytest

from qatlib.judging import attack_checks
from qatlib.judging import attack_scores as scores
from qatlib.precision import Precision
from qatlib.studies.attackers import Attack
from qatlib.studies.variations import Variations
from tests.judging.attacks import CLEAN_AND_NOISE, described, gradient


def test_all_checks_are_made(robustness, model, frame):
    complete = scores.attacked(frame, *robustness.sets)
    variations = Variations(robustness, model)
    of = (robustness.widths, robustness.sets, robustness.section.control)
    found = attack_checks.main_checks(complete, variations.reach(), *of, resamples=100)
    outside = robustness.from_outside(model, robustness.trained("random", 1000))
    static = {p.name: variations.static_variants(p) for p in variations.ends}
    for at, tried in static.items():
        found += attack_checks.variation_checks(tried, complete, at, resamples=100)
    found += attack_checks.outside_checks(variations.gradients(), outside, complete, robustness.fixed.name, resamples=100)
    rounding, adaptive = robustness.rounded_noisily(model), scores.with_rpi(variations.adaptive_variants(), robustness.sets[0])
    of = (complete, adaptive, robustness.drawn_finer(model), rounding, robustness.sets[0])
    found += attack_checks.adaptive_checks(*of, robustness.section.draws, resamples=100)
    found += attack_checks.longer_attack(static, adaptive, robustness.sets[0], resamples=100)
    found += attack_checks.cost_checks(robustness.section, {"words at 8": 12.5})
    assert {check.number for check in found} == set(range(13))
    assert any("over 2 such draws a step (a believable evaluation takes 20)" in check.what for check in found)
    assert sum("10 times the passes" in check.what for check in found) == 2  # at both ends of the set
    table = attack_checks.noise_table(complete, rounding, robustness.sets[0], resamples=100)
    assert table["defence"].tolist() == ["RPI {8, 4}", *(d for d in ("8", "4", "noise at 8", "noise at 4") for _ in range(2))]
    assert set(table["n"]) == {len(robustness.fewer)} and table["rpi_gain"][0] == 0
    assert table["target"].tolist() == ["{8, 4}", "{8, 4}", "8", "{8, 4}", "4", *["{8, 4}", "noise at 8", "{8, 4}", "noise at 4"]]


FIRST, CONTROL = [tuple(Precision(b, b) for b in bits) for bits in ((4, 8), (16, 32))]
PRECISIONS = [Precision(b, b) for b in (32, 16, 8, 4)]
WIDTHS = tuple(p.name for p in PRECISIONS)
EOT = "EOT {4, 8}"
AS_IT_SHOULD_BE = {  # F1 by attack and by who answers, where every check holds
    **{("none", a): 90.0 for a in (*WIDTHS, "noise at 8", "per layer", "per token")},
    **{("noise", p): 88.0 for p in WIDTHS},
    **{(f"PGD at {a}", p): 20.0 if a == p else 40.0 for a in WIDTHS for p in WIDTHS},
    **{(f"EOT {name}", p): 20.0 if p in name else 40.0 for name in ("{4, 8}", "{16, 32}") for p in WIDTHS},
    **{("PGD at 8 of a twin", "8"): 40.0},
    **{("FGSM", "8"): 40.0, ("PGD", "8"): 20.0, ("PGD, ε 0.1", "8"): 50.0, ("PGD, ε 4", "8"): 2.0, ("random search", "8"): 80.0},
    **{(f"PGD, {how}", "8"): 20.0 for how in ("twice the steps", "twice the restarts", "margin loss")},
    **{(f"{EOT}, {how}", p): 22.0 for how in ("twice the steps", "margin loss") for p in ("4", "8")},
    **{("random search over {4, 8}", p): 80.0 for p in ("4", "8")},
    **{("EOT, uniform", f"per {kind}"): 30.0 for kind in ("layer", "token")},
    **{("EOT, mixed", "per layer"): 25.0, ("EOT, by token", "per token"): 25.0},
    **{(EOT, "noise at 8"): 30.0, ("EOT over noise", "noise at 8"): 25.0},
}

ATTACKS = {
    attack.name: attack
    for attack in (
        *CLEAN_AND_NOISE,
        *(gradient(f"PGD at {p}", p) for p in WIDTHS),
        *(gradient(f"EOT {name}", name) for name in ("{4, 8}", "{16, 32}")),
        gradient("PGD at 8 of a twin", "8 of a twin"),
        gradient("PGD", "8"),
        gradient("FGSM", "8", steps=1, varied="one step"),
        gradient("PGD, ε 0.1", "8", epsilon=0.1, varied="epsilon"),
        gradient("PGD, ε 4", "8", epsilon=4, varied="epsilon"),
        gradient("PGD, twice the steps", "8", steps=4, varied="steps"),
        gradient("PGD, twice the restarts", "8", varied="restarts"),
        gradient("PGD, margin loss", "8", objective="margin", varied="objective"),
        Attack("random search", "search", "8", varied="method"),
        gradient(f"{EOT}, twice the steps", "{4, 8}", steps=4, varied="steps"),
        gradient(f"{EOT}, margin loss", "{4, 8}", objective="margin", varied="objective"),
        Attack("random search over {4, 8}", "search", "{4, 8}", varied="method"),
        gradient("EOT, uniform", "per batch"),
        gradient("EOT, mixed", "per layer"),
        gradient("EOT, by token", "per token"),
        gradient("EOT over noise", "noise at 8"),
    )
}
VARIED_AT_8 = {"none", *(name for name in ATTACKS if name in ("PGD", "FGSM", "random search") or name.startswith("PGD, "))}


def failed(changed: dict[tuple[str, str], float], others: float = 0.0, nonzero: float = 100.0) -> set[int]:
    """The numbers of the checks that fail on such scores of 40 questions."""
    rows = [
        {
            "attack": attack,
            "answered": answered,
            "id": str(i),
            "paragraph": str(i),
            "em": 100.0,
            "f1": f1 + i % 5 - 2,
            "loss": 1.0,
        }
        for (attack, answered), f1 in (AS_IT_SHOULD_BE | changed).items()
        for i in range(40)
    ]
    frame = described(pd.DataFrame(rows), ATTACKS)
    options = {"resamples": 200}
    grid = frame["attack"].isin({"none", "noise", *(a for a, p in AS_IT_SHOULD_BE if p == "32")})
    complete = scores.attacked(frame[grid & frame["answered"].isin(WIDTHS)], FIRST, CONTROL)
    reach = pd.DataFrame([{"moved": 1.0, "others": others}])
    passes = frame["attack"].eq("random search") * 20 + 2
    gradients = pd.DataFrame({"precision": ["8"], "nonzero": [nonzero]})
    adaptive = scores.with_rpi(frame[frame["target"].eq("{4, 8}") & frame["varied"].ne("nothing")], FIRST)
    twin, tried = frame[frame["target"] == "8 of a twin"], frame[frame["attack"].isin(VARIED_AT_8) & frame["answered"].eq("8")]
    kinds = {kind: frame[frame["answered"].str.startswith(kind)] for kind in ("per", "noise at")}
    found = [
        *attack_checks.main_checks(complete, reach, PRECISIONS, [FIRST, CONTROL], CONTROL, **options),
        *attack_checks.variation_checks(tried.assign(passes=passes), complete, "8", **options),
        *attack_checks.outside_checks(gradients, twin, complete, "8", **options),
        *attack_checks.adaptive_checks(complete, adaptive, kinds["per"], kinds["noise at"], FIRST, 20, **options),
    ]
    return {check.number for check in found if check.verdict == "FAIL"}


def test_no_check_fails_where_all_is_as_it_should_be():
    assert failed({}) == set()


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        (0, {("FGSM", "8"): 5}),
        (0, {("PGD, ε 4", "8"): 60}),
        (2, {("noise", "16"): 10}),
        (3, {("PGD at 4", "4"): 95}),
        (4, {("PGD at 8 of a twin", "8"): 5}),
        (5, {(EOT, "4"): 60, (EOT, "8"): 60}),
        (5, {(f"{EOT}, margin loss", "4"): 5, (f"{EOT}, margin loss", "8"): 5}),
        (5, {("EOT, mixed", "per layer"): 60}),
        (5, {("EOT, by token", "per token"): 60}),
        (6, {("PGD at 32", "8"): 5}),
        *((7, {(f"PGD, {how}", "8"): 5}) for how in ("twice the steps", "twice the restarts", "margin loss")),
        (7, {(f"{EOT}, twice the steps", "4"): 5, (f"{EOT}, twice the steps", "8"): 5}),
        (8, {("random search", "8"): 5}),
        (8, {("random search over {4, 8}", "4"): 5, ("random search over {4, 8}", "8"): 5}),
        (11, {("EOT {16, 32}", p): 60 for p in ("16", "32")}),
    ],
)
def test_a_check_fails_where_its_own_attack_is_as_it_should_not_be(number, changed):
    assert number in failed(changed)


def test_checks_1_and_6_fail_where_a_protected_token_moved_and_where_gradients_are_missing():
    assert failed({}, others=0.1) == {1} and failed({}, nonzero=50.0) == {6}


@pytest.mark.parametrize("gain", [-8, 0, 8])
def test_a_longer_attack_is_made_on_both_sides(gain):
    left = pd.DataFrame({"id": [*"abcd"], "paragraph": [*"abcd"], "f1": [10, 12, 9, 11]})
    random = described(left.assign(answered="RPI {4, 8}", attack=f"{EOT}, twice the steps"), ATTACKS)
    static = described(left.assign(answered="8", attack="PGD, twice the steps", f1=left["f1"] - gain), ATTACKS)
    (check,) = attack_checks.longer_attack({"8": static}, random, FIRST, resamples=100)
    assert (check.number, check.verdict) == (7, "shown")
    assert check.found is not None and check.found.value == pytest.approx(gain)
