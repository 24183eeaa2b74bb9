"""Means over draws, minima over attacks, drops, and paired contrasts."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from qatlib.attacks.defence import set_name
from qatlib.attacks.judge import averaged
from qatlib.judging import attack_scores as scores
from qatlib.precision import Precision
from qatlib.studies.attackers import ABOUT, Attack
from tests.judging.attacks import CLEAN_AND_NOISE, described, gradient

F1 = {  # answered, attack → F1 of questions a to d
    ("8", "none"): [100.0, 100, 100, 60],
    ("4", "none"): [100.0, 80, 60, 60],
    ("8", "PGD at 8"): [0.0, 100, 40, 0],
    ("4", "PGD at 8"): [80.0, 20, 60, 0],
    ("8", "PGD at 4"): [60.0, 0, 100, 0],
    ("4", "PGD at 4"): [40.0, 20, 0, 60],
}
ATTACKS = {a.name: a for a in (*CLEAN_AND_NOISE, gradient("PGD at 8", "8"), gradient("PGD at 4", "4"))}


def rows(f1: dict[tuple[str, str], list[float]], attacks: dict[str, Attack]) -> pd.DataFrame:
    where = {"id": list("abcd"), "paragraph": list("ppqq"), "loss": 1.0}
    parts = [pd.DataFrame(where | {"f1": v, "em": v, "answered": p, "attack": a}) for (p, a), v in f1.items()]
    return described(pd.concat(parts, ignore_index=True), attacks)


FRAME = rows(F1, ATTACKS)
SET = (Precision(4, 4), Precision(8, 8))


def f1(frame, answered, attack):
    return scores.select(frame, answered, attack).sort_values("id")["f1"].tolist()


def test_a_draw_is_the_mean_over_the_set_question_by_question():
    drawn = averaged(FRAME, ["4", "8"], "RPI {4, 8}")
    assert set_name(SET) == "{4, 8}"
    assert f1(drawn, "RPI {4, 8}", "none") == [100, 90, 80, 60]
    assert f1(drawn, "RPI {4, 8}", "PGD at 8") == [40, 60, 50, 0]


def test_the_worst_is_the_mean_of_minima():
    worst = scores.worst_over(FRAME, ["PGD at 8", "PGD at 4"])
    assert f1(worst, "8", "worst") == [0, 0, 40, 0]
    drawn = averaged(FRAME, ["4", "8"], "RPI")  # first the expectation over draws, then the attacker's choice
    assert f1(scores.worst_over(drawn, ["PGD at 8", "PGD at 4"]), "RPI", "worst") == [40, 10, 50, 0]


WAYS = {"4": ["4"], "8": ["8"], "RPI": ["4", "8"]}


def test_success_counts_questions_that_every_draw_answers_right_without_an_attack():
    found = scores.successes(FRAME, WAYS, ["PGD at 8", "PGD at 4"])
    assert found.groupby("answered")["id"].unique().map(set).to_dict() == {"4": {"a"}, "8": set("abc"), "RPI": {"a"}}
    worst = found[(found["answered"] == "8") & (found["attack"] == "worst")]
    assert worst["success"].tolist() == [100, 100, 100]  # each question under its own
    rates = scores.success_table(found, resamples=100)
    assert set(rates["answered"]) == {"8"} and set(rates["right_at_first"]) == {3}  # the others' are of one paragraph
    assert scores.success_table(scores.successes(FRAME[FRAME["f1"] < 100], WAYS)).empty


def test_what_an_attack_spoils_for_a_draw_lies_between_what_it_spoils_for_its_precisions():
    rng = np.random.default_rng(0)
    attacks, ids = ["none", *(f"attack {i}" for i in range(20))], list("abcdefgh")
    each = pd.DataFrame(product(("4", "8"), attacks, ids), columns=["answered", "attack", "id"])
    right = (each["attack"] == "none") | (rng.random(len(each)) < 0.5)
    made = {"none": CLEAN_AND_NOISE[0]} | {name: gradient(name, "8") for name in attacks[1:]}
    frame = described(each, made).assign(paragraph=each["id"].isin(list("abcd")), f1=np.where(right, 100.0, 60.0))
    rates = scores.success_table(scores.successes(frame, WAYS), resamples=10)
    rates = rates.pivot(index="attack", columns="answered", values="success")
    low, high = rates[["4", "8"]].min(axis=1), rates[["4", "8"]].max(axis=1)
    assert (low < high).any() and rates["RPI"].between(low, high).all()


def test_gains_are_those_under_the_worst_attack_over_the_most_robust_precision_of_each_group():
    group = {"none": [1, 2], "PGD at 8": [1], "PGD at 4": [2]}
    parts = [FRAME[FRAME["attack"] == a].assign(group=g) for a, groups in group.items() for g in groups]
    found = scores.gains(pd.concat(parts), ["group"], SET, ["4", "8"])
    table = scores.gain_table(found, ["group"], resamples=100)
    assert table["group"].tolist() == [1, 2] and table["n"].tolist() == [4, 4]
    for row, attack in zip(table.itertuples(), ("PGD at 8", "PGD at 4"), strict=True):
        assert row.static_f1 == np.mean(f1(FRAME, row.static, attack))
        assert row.gain == pytest.approx(row.rpi_f1 - row.static_f1) and row.gain_low <= row.gain <= row.gain_high
        mine = found[found["group"] == row.group]
        assert mine["gain"].tolist() == (mine["rpi_f1"] - mine["static_f1"]).tolist()


def test_drops_are_against_the_same_way_of_answering_without_an_attack():
    lost = scores.drops(FRAME)
    assert scores.select(lost, "4", "PGD at 4").sort_values("id")["f1_drop"].tolist() == [60, 60, 60, 0]
    assert "none" not in set(lost["attack"])


@pytest.mark.parametrize(
    ("clean_4", "clean_8", "best"),
    [(90, 90, "4"), (89, 90, "4"), (80, 90, "8"), (60, 60, "4")],  # RPI has their mean; 4 is the more robust by 10 points
)
def test_static_precisions_that_cost_more_than_a_point_without_an_attack_do_not_count(clean_4, clean_8, best):
    means = {("4", "none"): clean_4, ("8", "none"): clean_8, ("4", "PGD at 8"): 40, ("8", "PGD at 8"): 30}
    each = [{"answered": p, "attack": a, "f1": v, "em": v, "loss": 1.0, "id": i} for (p, a), v in means.items() for i in "ab"]
    frame = scores.attacked(described(pd.DataFrame(each).assign(paragraph="p"), ATTACKS), SET)
    assert scores.best_static(frame, SET, ["8", "4"]) == best


def test_a_gradient_attack_of_any_name_takes_part_in_the_worst_case():
    surprise = gradient("Surprise", "8", varied="method")
    others = {"PGD at random": Attack("PGD at random", "search"), "EOT by words": Attack("EOT by words", "text")}
    stronger = {(p, "Surprise"): [0.0, 0, 0, 0] for p in ("4", "8")}
    without_gradient = {(p, name): [-1.0] * 4 for p in ("4", "8") for name in others}
    frame = rows(F1 | stronger | without_gradient, ATTACKS | others | {"Surprise": surprise})
    assert scores.gradient_attacks(frame) == ["PGD at 8", "PGD at 4", "Surprise"]
    before, after = (scores.attacked(f, SET) for f in (FRAME, frame))
    for way in ("4", "8", "RPI {4, 8}"):
        assert f1(after, way, "worst") == [0, 0, 0, 0] != f1(before, way, "worst")
    assert scores.own_attack(frame, "8") == "PGD at 8"


def test_an_attack_is_found_by_its_columns_and_by_no_more_than_one():
    assert scores.attack_with(FRAME, family="gradient", target="4") == "PGD at 4"
    with pytest.raises(KeyError, match="one attack with family gradient is needed, but there are 2: PGD at 8, PGD at 4"):
        scores.attack_with(FRAME, family="gradient")
    with pytest.raises(KeyError, match="target 3, varied nothing is needed, but there are 0: none"):
        scores.own_attack(FRAME, "3")


def test_tables_say_what_each_attack_is():
    complete = scores.attacked(FRAME, SET)
    for frame in (complete, scores.drops(complete)):
        table = scores.attack_table(frame, ["f1"], resamples=100)
        assert table.columns.tolist()[-len(ABOUT) :] == list(ABOUT) and not table.isna().any(axis=None)
        kinds = table.drop_duplicates("attack").set_index("attack")
        assert kinds.loc["PGD at 8", ["family", "target", "epsilon"]].tolist() == ["gradient", "8", 0.5]
        assert kinds.loc["worst", ["family", "target", "epsilon"]].tolist() == ["worst", "none", 0]


def test_a_contrast_pairs_questions_whatever_their_order():
    a, b = scores.select(FRAME, "8", "none"), scores.select(FRAME, "4", "none").sample(frac=1, random_state=0)
    found = scores.contrast(a, b, resamples=100)
    assert (found.value, found.n, found.clusters) == (15, 4, 2)
    with pytest.raises(KeyError, match="no answers by 3 under none"):
        scores.select(FRAME, "3", "none")
