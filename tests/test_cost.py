"""Cost by formula, and the line through accuracy and bits."""

from __future__ import annotations

import pytest

from qatlib.arguments import QuantizerArguments
from qatlib.cost import cost_table, named_table, training_bitops
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
