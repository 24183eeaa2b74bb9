"""Tables of what trainings became."""

from __future__ import annotations

import pandas as pd
import pytest

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
