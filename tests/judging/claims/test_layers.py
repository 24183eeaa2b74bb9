"""Verdicts on layers, on costs whose answer is known."""

from __future__ import annotations

import pandas as pd
import pytest

from qatlib.judging.claims import layers
from qatlib.judging.stats import Estimate
from tests.judging.claims.scores import said, scores

COSTS = {
    "attn": 0.4,
    "mlp": 0.1,
    "qkv and mlp_in": 0.2,
    "attn_out and mlp_out": 0.3,
    "all but attn_out": 0.3,
    "attn_out": 0.1,
    "mlp_out": 0.25,
    "qkv": 0.3,
    "mlp_in": 0.1,
    "first third": 0.5,
    "last quarter": 0.1,
}


def costs(factor: float) -> pd.DataFrame:
    """Nats that every part costs at two widths, and each question its own share; seed 0 alone."""
    found = scores({part: {"4": factor * cost, "3": 3 * factor * cost} for part, cost in COSTS.items()}, [0])
    return found.assign(loss_change=found["f1"]).drop(columns="f1")


def test_every_pair_counts_in_every_unit():
    kept = {"chosen": Estimate(98, 97, 99, 40, 20), "S1's": Estimate(97, 96, 98, 40, 20)}
    units = {"a layer": 1.0, "a million weights": 10.0}
    table = layers.verdicts({"a layer": costs(1), "a million weights": costs(2)}, units, kept, resamples=100)
    assert said(table) == {
        "C10": "reproduced",
        "C11": "not reproduced",
        "C12": "not reproduced",
        "C13": "reproduced",
        "C15": "reproduced",
    }
    without = layers.verdicts({"a layer": costs(1).query("model != 'last quarter'")}, units, kept, resamples=100)
    assert said(without)["C13"] == "not tested" and said(without)["C10"] == "reproduced"
    values = table.set_index("effect")["value"]
    assert values["cost of attn beyond mlp for a layer, nats"] == pytest.approx(0.6)
    assert values["cost of attn beyond mlp for a million weights, nats"] == pytest.approx(1.2)
    assert values["percent of the base's F1 kept with 83 % of the layers lowered, S1's"] == 97
    margins = table.set_index("effect")["margin"]
    assert margins["cost of attn beyond mlp for a million weights, nats"] == 10 * layers.NATS  # as many layers, as much room


GROUPS = [(block, role) for block in range(12) for role in ("qkv", "attn_out", "mlp_in", "mlp_out")]


def test_every_part_that_a_claim_names_is_there():
    parts = layers.parts(GROUPS)
    assert {part for pair in layers.PAIRS for part in pair} <= set(parts)
    assert sorted(parts["attn"] + parts["mlp"]) == sorted(parts["all but attn_out"] + parts["attn_out"]) == sorted(GROUPS)
    assert sorted(parts["qkv and mlp_in"] + parts["attn_out and mlp_out"]) == sorted(GROUPS)
    ends = {name: {block for block, _ in parts[name]} for name in ("first third", "last quarter")}
    assert ends == {"first third": {0, 1, 2, 3}, "last quarter": {9, 10, 11}}


def test_a_role_that_no_layer_has_is_an_empty_part():
    parts = layers.parts([(0, "qkv"), (0, "attn_out"), (1, "other")])
    assert parts["mlp"] == [] and parts["attn"] == [(0, "qkv"), (0, "attn_out")] and parts["other"] == [(1, "other")]


def test_a_model_of_two_blocks_has_no_ends():
    parts = layers.parts(group for group in GROUPS if group[0] < 2)
    assert parts["first third"] == [] == parts["last quarter"] and len(parts["mlp"]) == 4


def test_contrasts_are_by_unit_pair_and_width():
    table = layers.contrasts({"a layer": costs(1), "a million weights": costs(2)}, resamples=100)
    assert len(table) == 2 * 2 * len(layers.PAIRS)
    for (per, part, other), rows in table.groupby(["per", "model", "over"]):
        factor = 2 if per == "a million weights" else 1
        gap = factor * (COSTS[part] - COSTS[other])
        assert dict(zip(rows["precision"], rows["difference"], strict=True)) == pytest.approx({"4": gap, "3": 3 * gap})
        assert set(rows["claim"]) == {layers.PAIRS[part, other]}
    fewer = layers.contrasts({"a layer": costs(1).query("model != 'attn'")}, resamples=100)
    assert "C10" not in set(fewer["claim"]) and len(fewer) == 2 * (len(layers.PAIRS) - 1)
