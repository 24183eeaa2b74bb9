"""Accuracy against cost."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qatlib.cost import cost_table
from qatlib.judging.pareto import linear_trend, per_bit, trend_of_study


def scores(f1: dict[str, float], spread: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    ids, noise = [f"q{i}" for i in range(40)], rng.normal(0, spread, 40)
    frames = [
        pd.DataFrame(
            {
                "precision": name,
                "id": ids,
                "paragraph": [i // 4 for i in range(40)],
                "f1": value + noise + rng.normal(0, spread, 40),
            }
        )
        for name, value in f1.items()
    ]
    return pd.concat(frames, ignore_index=True)


def test_a_straight_line_is_found_exactly_and_a_bend_is_not_straight():
    bits = {"C1": 8.0, "C0": 6.0, "C2": 4.0, "int2": 2.0}
    slope, r2 = linear_trend(scores({name: 10 + 5 * b for name, b in bits.items()}), bits, resamples=100)
    assert (slope.value, slope.low, slope.high) == pytest.approx((5, 5, 5)) and r2.value == pytest.approx(1)
    bent = {"C1": 80.0, "C0": 79.0, "C2": 75.0, "int2": 10.0}
    slope, r2 = linear_trend(scores(bent, 5.0), bits, resamples=200)
    expected = np.polyfit(list(bits.values()), scores(bent, 5.0).groupby("precision")["f1"].mean()[list(bits)], 1)[0]
    assert slope.value == pytest.approx(expected) and slope.low < slope.value < slope.high
    assert r2.low < r2.value < r2.high and slope.n == slope.clusters == 4  # the line is of configurations


def test_configurations_on_different_questions_have_no_line():
    frame = scores({"C1": 8, "C0": 6, "C2": 4})
    with pytest.raises(ValueError, match="different questions"):
        linear_trend(frame[:-1], {"C1": 8, "C0": 6, "C2": 4})


def test_accuracy_for_each_bit(model):
    costs = cost_table(model, {"C1": "C1", "C2": "C2"})
    accuracy = pd.DataFrame({"precision": ["C2", "C1"], "f1": [40.0, 80.0], "f1_low": [36.0, 72.0], "f1_high": [44.0, 88.0]})
    table = per_bit(costs, accuracy)
    assert table["f1"].tolist() == [80, 40] and table["f1_per_bit"].tolist() == [10, 10]
    assert table["f1_per_bit_low"].tolist() == [9, 9]
    with pytest.raises(KeyError):
        per_bit(costs, accuracy[:1])


def test_a_study_has_a_line_of_its_own_configurations_if_three_differ():
    bits = {"C1": 8.0, "C0": 6.0, "C2": 4.0, "int2": 2.0}
    found = scores({name: 10 + 5 * b if name != "int2" else 90.0 for name, b in bits.items()})
    f1 = found.groupby("precision")["f1"].mean()
    rows = [{"configuration": n, "study": "S0" if n == "int2" else "S4", "w_bits": b, "f1": f1[n]} for n, b in bits.items()]
    table = pd.DataFrame(rows)
    slope, _ = trend_of_study(found, table, "S4", resamples=100)
    assert slope.value == pytest.approx(5) and slope.n == 3
    assert trend_of_study(found, table.query("configuration != 'C0'"), "S4") is None
    assert trend_of_study(found, table.assign(w_bits=[4.0, 4, 8, 2]), "S4") is None
    assert trend_of_study(found, table, "S0") is None
