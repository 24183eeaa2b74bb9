"""Random against static: each side faces the attack that it should, and the figures are of those two."""

from __future__ import annotations

import pandas as pd
import pytest

from qatlib.judging import attack_pairs
from qatlib.judging import attack_scores as scores
from qatlib.precision import Precision
from tests.judging.attacks import CLEAN_AND_NOISE, described, gradient

FIRST, CONTROL = [tuple(Precision(b, b) for b in bits) for bits in ((4, 8), (16, 32))]
PRECISIONS = [*CONTROL, *FIRST]
ATTACKS = [*CLEAN_AND_NOISE, *(gradient(f"at {p.name}", p.name) for p in PRECISIONS)]
ATTACKS += [gradient("over the first", "{4, 8}"), gradient("over the control", "{16, 32}")]
F1 = {  # by attack, of the precisions 4, 8, 16 and 32
    "none": (90.0, 90, 90, 90),
    "noise": (90.0, 90, 90, 90),
    "at 4": (10.0, 60, 70, 70),
    "at 8": (50.0, 30, 70, 70),
    "at 16": (60.0, 60, 12, 40),
    "at 32": (60.0, 60, 40, 20),
    "over the first": (20.0, 36, 70, 70),
    "over the control": (60.0, 60, 14, 14),
}
IDS = [f"q{i}" for i in range(40)]


def answers(f1: dict[str, dict[str, float]], attacks) -> pd.DataFrame:
    """Rows of every attack and way of answering; questions lie up to two points apart, the same for all."""
    rows = [
        {"attack": a, "answered": way, "id": q, "paragraph": q, "em": 0.0, "f1": value + i % 5 - 2, "loss": 1.0}
        for a, by_way in f1.items()
        for way, value in by_way.items()
        for i, q in enumerate(IDS)
    ]
    return described(pd.DataFrame(rows), {attack.name: attack for attack in attacks})


def complete(*surprises) -> pd.DataFrame:
    """Everything answered at every precision and by RPI; a surprise leaves 5 F1 at 8 bits alone."""
    f1 = {a: dict(zip(("4", "8", "16", "32"), values, strict=True)) for a, values in F1.items()}
    f1 |= {attack.name: f1["none"] | {"8": 5.0} for attack in surprises}
    return scores.attacked(answers(f1, [*ATTACKS, *surprises]), FIRST, CONTROL)


def test_a_static_precision_faces_the_attack_on_itself_and_a_draw_the_one_over_its_set():
    found = attack_pairs.faced(complete(), FIRST, "8")
    assert [(f.random, f.static) for f in found] == [
        ("none", "none"),
        ("at 8", "at 8"),
        ("over the first", "at 8"),
        ("worst", "worst"),
    ]


def test_each_set_is_held_against_the_most_robust_static_precision_of_its_own():
    table = attack_pairs.against_static(complete(), [FIRST, CONTROL], CONTROL, PRECISIONS, resamples=100)
    assert table["over"].tolist() == ["static 8"] * 4 + ["static 32"] * 4  # the control's own, though 8 is more robust
    assert table["attacker"].tolist() == ["none", "transfer", "adaptive", "worst"] * 2
    assert table["attack"].tolist()[:4] == ["none", "at 8", "over the first (static: at 8)", "worst"]
    assert table["family"].tolist()[:4] == ["none", "gradient", "gradient", "worst"]
    assert table["target"].tolist()[:4] == ["none", "8", "{4, 8}", "none"]
    gains = [0, (50 + 30) / 2 - 30, (20 + 36) / 2 - 30, (20 + 36) / 2 - 30]
    assert table["difference"].tolist()[:4] == pytest.approx(gains)
    assert (table["difference_low"] <= table["difference"]).all() and set(table["n"]) == {len(IDS)}


def test_an_attack_of_another_kind_counts_in_the_worst_case_alone():
    surprise = gradient("Surprise", "8", varied="method")
    tables = [
        attack_pairs.against_static(complete(*more), [FIRST], CONTROL, FIRST, resamples=100).set_index("attacker")
        for more in ((), (surprise,))
    ]
    before, after = (t["difference"] for t in tables)
    assert after[["none", "transfer"]].tolist() == [0, (10 + 60) / 2 - 10] and set(tables[1]["over"]) == {"static 4"}
    assert before["worst"] == pytest.approx(28 - 30) and after["worst"] == pytest.approx(28 - 10)


@pytest.mark.parametrize("drawn", [20.0, 40.0])
def test_protocols_hold_both_sides_against_their_own_attackers(drawn):
    own = [CLEAN_AND_NOISE[0], gradient("one draw", "S0's RPI")]
    one_draw = answers({"none": {"S0's RPI": 80.0}, "one draw": {"S0's RPI": drawn}}, own)
    table = attack_pairs.protocols(complete(), one_draw, FIRST, "8", IDS, resamples=100)
    assert table["n"].tolist() == [10, len(IDS)] * 4
    assert table["defence"].tolist() == ["RPI {4, 8}"] * 2 + ["S0's RPI"] * 2 + ["RPI {4, 8}"] * 4
    assert table["attacker of static"].tolist() == ["at 8"] * 6 + ["worst"] * 2
    whole = table[table["n"] == len(IDS)]
    assert whole["static_drop"].tolist() == pytest.approx([60] * 4)
    assert whole["rpi_drop"].tolist() == pytest.approx([90 - 40, 80 - drawn, 90 - 28, 90 - 28])
    assert whole["gain"].tolist() == pytest.approx([40 - 30, drawn - 30, 28 - 30, 28 - 30])


def test_without_an_attack_a_draw_is_held_against_each_precision():
    frame = answers({"none": {"4": 70.0, "8": 80.0}}, CLEAN_AND_NOISE[:1])
    table = attack_pairs.over_each(scores.with_rpi(frame, FIRST), FIRST, FIRST, resamples=100)
    assert table["over"].tolist() == ["static 4", "static 8"] and table["gain"].tolist() == pytest.approx([5, -5])
