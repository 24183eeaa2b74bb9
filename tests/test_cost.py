"""Cost by formula, and the line through accuracy and bits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qatlib.arguments import QuantizerArguments
from qatlib.cost import cost_table, linear_trend, named_table, per_bit, training_bitops
from qatlib.model import SwitchableModel
from qatlib.named import NAMED
from qatlib.precision import Configuration, Precision


@pytest.fixture
def model(tiny_lm):
    return SwitchableModel(tiny_lm())


def test_sizes_add_up_and_at_full_precision_nothing_is_smaller(model):
    costs = cost_table(model, {"32": 32, "8": 8, "w4a8": "w4a8"})
    parameters = sum(p.numel() for p in model.lm.parameters())
    assert costs["bytes"][0] == 4 * parameters and costs["compression"][0] == 1
    assert (costs["bytes"] == costs["switchable_bytes"] + costs["rest_bytes"]).all()
    # 32 bits to 8, less what the scales weigh
    assert 3 < costs["switchable_compression"][1] < 4 and costs["a_bits"].tolist() == [32, 8, 8]


def test_groups_have_scales_of_their_own(model):
    layers, grouped = (
        model.infos,
        SwitchableModel(model.lm.__class__(model.lm.config), QuantizerArguments("per_group", group_size=8)),
    )
    difference = cost_table(grouped, {"4": 4})["switchable_bytes"][0] - cost_table(model, {"4": 4})["switchable_bytes"][0]
    assert difference == 4 * sum(info.weights / 8 - info.channels for info in layers)


def test_averages_by_weights_and_by_layers_differ_where_sizes_do(model):
    costs = cost_table(model, {name: name for name in ("C6", "C7", "C8")}).set_index("configuration")
    assert set(costs["layer_bits"]) == {5.0}
    assert costs["w_bits"].to_dict() == pytest.approx({"C6": 4 + 4 * 3 / 12, "C7": 4 + 4 / 12, "C8": 4 + 4 * 4 / 12})
    assert costs["bytes"].is_monotonic_increasing is False and costs["bytes"]["C7"] == costs["bytes"].min()


def test_every_name_is_in_the_table_with_its_meaning(model):
    table = named_table(model.infos)
    assert table["configuration"].tolist() == list(NAMED) and table["meaning"].str.len().min() > 5


def test_bit_operations_are_the_mean_of_three_products_over_those_of_floats(model):
    def of(precision, gradient_bits=32):
        return training_bitops(Configuration.uniform(precision, model.infos), model.infos, gradient_bits)

    assert of(Precision(32, 32)) == 1
    assert of(Precision(8, 8), 8) == pytest.approx(1 / 16)
    assert of(Precision(4, 4), 8) == pytest.approx((16 + 2 * 32) / 3 / 1024)  # as CPT's code has it
    assert of(Precision(2, 8), 16) == pytest.approx((16 + 32 + 128) / 3 / 1024)


def test_bit_operations_of_a_mixture_are_averaged_by_weights(model):
    mixed = Configuration.resolve("C7", model.infos)
    expected = sum(
        info.weights * training_bitops(Configuration.uniform(mixed[info.name], model.infos), model.infos, 8)
        for info in model.infos
    ) / sum(info.weights for info in model.infos)
    assert training_bitops(mixed, model.infos, 8) == pytest.approx(expected)


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
