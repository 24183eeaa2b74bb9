"""What a search found, in tables and sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qatlib.judging import searches
from qatlib.judging.results import Cell
from qatlib.precision import Configuration, LayerInfo, Precision
from qatlib.search import Allocation, Interactions


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [([3.0, 2, 1], ""), ([1.04, 1, 1], "about the same time"), ([1.0, 2, 3], "the base is the fastest"), ([2, 1, 3], "")],
)
def test_a_page_says_where_time_leaves_nothing_to_search(milliseconds, said):
    precisions = tuple(Precision(b, b) for b in (8, 4, 2))
    cost = np.tile(np.array(milliseconds, float), (2, 1))
    found = searches.no_tradeoff(Allocation(((0, "qkv"), (1, "qkv")), precisions, np.zeros((2, 3)), cost))
    assert said in found and bool(said) == bool(found)


def test_who_is_ahead_is_said_by_intervals():
    rows = [("random", "8", -1.0, 1.0), ("random", "4", 0.5, 2.0), ("learned", "4", 0.5, 2.0), ("learned", "3", -2.0, -0.5)]
    gaps = pd.DataFrame(rows, columns=["over", "budget", "difference_low", "difference_high"])
    said = searches.standing(gaps)
    assert "ahead of random at a budget of 4; learned at a budget of 4;" in said
    assert said.endswith("ahead of the ILP is learned at a budget of 3.")
    said = searches.standing(gaps[:1])
    assert said.count("no method at any budget") == 2


PRECISIONS = (Precision(8, 8), Precision(4, 4))
PROBLEM = Allocation(((0, "qkv"), (1, "qkv")), PRECISIONS, np.array([[0.0, 1.0], [0.0, 3.0]]), np.array([[4.0, 2.0]] * 2))


def answers(model: str, f1: dict[str, float], loss: float = 1.0) -> pd.DataFrame:
    """Ten questions at every precision."""
    rows = {"seed": 0, "id": [f"q{i}" for i in range(10)], "paragraph": [f"p{i // 2}" for i in range(10)]}
    shown = [pd.DataFrame({"model": model, "precision": p} | rows | {"em": x, "f1": x, "loss": loss}) for p, x in f1.items()]
    return pd.concat(shown, ignore_index=True)


def listed(*choices: tuple[str, str, str, float, list[int]]) -> pd.DataFrame:
    table = pd.DataFrame(choices, columns=["method", "budget", "id", "average_bits", "choice"])
    return table.assign(choice=[np.array(choice) for choice in table["choice"]])


def test_a_prediction_adds_losses_and_what_pairs_add():
    choices = listed(("ILP", "8", "a", 8, [0, 0]), ("ILP", "4", "b", 4, [1, 1]))
    scores = pd.concat([answers("search", {"a": 80.0}, 1.5), answers("search", {"b": 40.0}, 6.0)])
    pairs = Interactions(np.array([[0, 0.5], [0.5, 0]]), np.array([[0.0, 1.0]] * 2))
    table = searches.predicted(choices, scores, answers("base", {"8": 80.0}), PROBLEM, pairs)
    assert table["measured"].tolist() == [0.5, 5.0] and table["f1"].tolist() == [80, 40]
    assert table["predicted"].tolist() == [0, 4] and table["second_order"].tolist() == pytest.approx([0, 4.5])
    assert "measured" not in choices


def test_predictions_are_ranked_by_what_was_measured():
    bits = np.repeat([8.0, 6, 4], 4)
    measured = 10 - bits + np.tile([0, 0.1, 0.2, 0.3], 3)
    judged = pd.DataFrame({"budget": bits.astype(str), "average_bits": bits, "measured": measured})
    judged = judged.assign(predicted=-judged["measured"], second_order=judged["measured"])
    table = searches.prediction_table(judged, pairs=True, resamples=100).set_index("prediction")["correlation"]
    assert table["predicted"] == pytest.approx(-1) and table["second order"] == pytest.approx(1)
    assert table["average bits alone"] > 0.8 and table["predicted, within a budget"] == pytest.approx(-1)
    assert "second order" not in set(searches.prediction_table(judged, pairs=False, resamples=100)["prediction"])


def test_a_budget_of_two_configurations_says_nothing_within_itself():
    bits = [*range(16, 6, -1), 4, 4]
    judged = pd.DataFrame({"budget": list("a" * 10 + "bb"), "average_bits": bits, "measured": range(12)})
    judged = judged.assign(predicted=judged["average_bits"], second_order=0.0)
    table = searches.prediction_table(judged, pairs=False, resamples=100).set_index("prediction")["configurations"]
    assert table.to_dict() == {"predicted": 12, "average bits alone": 12, "predicted, within a budget": 10}


def test_a_method_spends_the_mean_of_its_draws():
    choices = listed(("ILP", "6", "a", 6.0, [0, 1]), ("random", "6", "b", 5.0, [1, 0]), ("random", "6", "c", 4.0, [1, 1]))
    methods = searches.by_method(choices, answers("search", {"a": 80.0, "b": 60.0, "c": 40.0}))
    table = searches.summary(methods, choices, resamples=100).set_index("method")
    assert table["average_bits"].to_dict() == {"ILP": 6, "random": 4.5} and table["f1"].to_dict() == {"ILP": 80, "random": 50}
    assert set(table["budget"]) == {"6"}


def test_a_recommendation_says_what_it_lowers_and_loses():
    layers = [LayerInfo(f"h.{i}", i, "qkv", weights, 1) for i, weights in enumerate((300, 100))]
    mixed = Configuration(dict(zip([layer.name for layer in layers], PRECISIONS, strict=True)))
    scores = pd.concat([answers("base", {"8": 80.0}), answers("ILP", {"8": 80.0, "7.5": 77.0})], ignore_index=True)
    advised = {8.0: Configuration.uniform(PRECISIONS[0], layers), 7.5: mixed}
    table = searches.recommended(advised, scores, Cell("base", "8"), layers, resamples=100)
    assert table["budget"].tolist() == [8, 7.5] and table["lowered"].tolist() == [0, 50] and table["n"].tolist() == [10, 10]
    assert table["average_bits"].tolist() == [8, 7] and table["f1_change"].tolist() == pytest.approx([0, -3])
