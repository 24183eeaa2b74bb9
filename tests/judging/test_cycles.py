"""Tables of what trainings became."""

from __future__ import annotations

import pandas as pd
import pytest

from qatlib.judging import cycles
from qatlib.judging.cycles import agreement, flatness, mean_rise, returns


def curve(model, bits, losses, seed=0):
    return pd.DataFrame(
        {"model": model, "seed": seed, "step": range(1, len(bits) + 1), "w_bits": bits, "span_loss": losses}, dtype=object
    ).astype({"seed": int, "w_bits": float, "span_loss": float})


def rises(model, rise, seeds=3):
    """Six questions, each as sharp as `rise` says on the mean of two directions and two radii."""
    rows = [
        {"model": model, "precision": "8", "seed": seed, "id": str(q), "paragraph": str(q), "draw": draw, "radius": radius}
        | {"loss_change": rise(q) + 5 * (-1) ** draw + radius - 1, "f1_change": 0.0}
        for seed in range(seeds)
        for q in range(6)
        for draw in range(2)
        for radius in (0.5, 1.5)
    ]
    return pd.DataFrame(rows)


def test_agreement_is_the_share_of_equal_answers():
    answers = {"8": ["a", "b", None, "d"], "4": ["a", "x", None, "d"], "2": ["x", "x", "x", "d"]}
    rows = [
        pd.DataFrame({"id": list("1234"), "paragraph": list("ppqq"), "prediction": said, "precision": p, "model": "m", "seed": 0})
        for p, said in answers.items()
    ]
    same = agreement(pd.concat(rows, ignore_index=True)).groupby("precision", sort=False)["same"].mean()
    assert same.to_dict() == {"8 and 4": 75, "8 and 2": 25, "4 and 2": 50}


def test_returns_are_the_visits_to_the_highest_precision():
    rising = curve("cpt shared", [2, 4, 8, 8, 2, 4, 8, 2], [9, 7, 4, 2, 5, 5, 6, 1])
    found = returns(pd.concat([rising, curve("random shared", [8, 2, 8], [1, 1, 1])], ignore_index=True))
    assert found["model"].tolist() == ["cpt shared"] * 2 and found["cycle"].tolist() == [1, 2] and set(found["w_bits"]) == {8}
    assert found["steps"].tolist() == [2, 1] and found["loss"].tolist() == [3, 6] and found["way"].tolist() == [8, 5]
    assert found["change"].iloc[1] == 3 and found["change"].isna().tolist() == [True, False]
    assert found["below_way"].tolist() == [1, 0] and found["below_last"].tolist() == [0, 0]


def test_returns_of_several_trainings_are_counted_and_the_way_may_lack():
    falling = [curve("cpt reversed", [6, 2, 6, 2], [4, 5, last, 5], seed) for seed, last in enumerate([3, 1, 7])]
    found = returns(pd.concat(falling, ignore_index=True))
    assert found["way"].isna().tolist() == [True, False] and found["seeds"].tolist() == [3, 3]
    assert found["change"].iloc[1] == pytest.approx((-1 - 3 + 3) / 3) and found["below_last"].tolist() == [0, 2]
    assert returns(curve("static", [8, 8], [1, 1])).empty


def test_directions_are_no_trainings():
    found = mean_rise(rises("static", lambda q: q, seeds=1))
    assert len(found) == 6 and found["loss_change"].tolist() == pytest.approx(range(6))


@pytest.mark.parametrize(
    ("rise", "seeds", "said"),
    [
        (lambda q: q - 1.0, 3, "flatter"),
        (lambda q: q + 1.0, 3, "not flatter"),
        (lambda q: q + 0.01 * (-1) ** q, 3, "not flatter"),
        (lambda q: q + 2.0 * (-1) ** q, 3, "undecided at this size"),
        (lambda q: q - 1.0, 2, "undecided at this size"),
    ],
)
def test_a_minimum_is_flatter_by_its_interval(rise, seeds, said):
    sharp = pd.concat([rises("static", float, seeds), rises("cpt shared", rise, seeds)], ignore_index=True)
    found = flatness(sharp, "cpt shared", ["static", "random shared"], resamples=200)
    assert found["over"].tolist() == ["static"] and found["minimum"].tolist() == [said] and found["seeds"].tolist() == [seeds]
    assert flatness(sharp, "two-phase", ["static"]).empty


def test_headlines_compare_the_cycle_and_not_the_adapters():
    assert set(cycles.HEADLINED) < set(cycles.PAIRS) and set(cycles.MOVED_ALIKE) < set(cycles.PAIRS)
    for model, over in cycles.HEADLINED:
        kinds = [name.split()[-1] for name in (model, over) if name.split()[-1] in ("separate", "shared")]
        assert len(set(kinds)) <= 1, (model, over)
    assert ("cpt all weights", "random all weights") in cycles.MOVED_ALIKE
    assert ("cpt all weights", "cpt shared") not in cycles.MOVED_ALIKE


def at(*cells):
    return pd.DataFrame(cells, columns=["model", "precision"])


def test_elsewhere_ran_who_answered_at_an_untrained_precision():
    found = cycles.run_elsewhere(at(("cpt shared", "8"), ("cpt shared", "3"), ("static", "8")), ["8", "4"])
    assert found.to_numpy().tolist() == [["cpt shared", "8"], ["cpt shared", "3"]]
    assert cycles.run_elsewhere(at(("static", "8")), ["8", "4"]).empty


def test_equal_bit_operations_are_those_of_static_training_at_the_widest():
    methods, precisions = ["static", "cpt shared"], ["8", "4"]
    passes = [("static", "8"), ("static", "4"), ("cpt shared", "8")]
    again = [("cpt shared at equal bitops", p) for p in ("8", "3")]
    found = cycles.at_equal_bitops(at(*passes, *again), methods, precisions)
    assert found.to_numpy().tolist() == [["static", "8"], ["cpt shared at equal bitops", "8"]]
    assert cycles.at_equal_bitops(at(*passes), methods, precisions).empty


def test_falls_are_counted_over_returns_and_trainings():
    falling = [curve("cpt shared", [6, 2, 6, 2, 6], [4, 5, second, 5, 1], seed) for seed, second in enumerate([3, 9])]
    assert "of cpt shared at 3 of 4 returns." in cycles.falls(returns(pd.concat(falling, ignore_index=True)))
    assert "none, which returns once" in cycles.falls(returns(curve("cpt shared", [2, 6], [1, 1])))


def test_the_least_agreement_is_named_with_the_best_of_the_others():
    rows = [("static", "8 and 2", 1.0), ("cpt shared", "8 and 4", 90.0), ("cpt shared", "8 and 2", 60.0)]
    rows += [("random shared", "8 and 2", 70.0), ("random separate", "8 and 2", 65.0)]
    same = pd.DataFrame(rows, columns=["model", "precision", "same"])
    same = same.assign(same_low=same["same"] - 1, same_high=same["same"] + 1)
    said = cycles.least_agreement(same, "cpt shared")
    assert said.endswith("cpt shared 60 % [59, 61] (at 8 and 2); best of the others random shared 70 % [69, 71] (at 8 and 2)")
    assert "best of the others" not in cycles.least_agreement(same[1:3], "cpt shared")
    assert cycles.least_agreement(same[:1], "cpt shared") == ""
