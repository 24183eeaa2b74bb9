"""Latencies are of the deployed layers, group by group, and of the deployed model; the model stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qatlib import latency
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision, names_by_group


@pytest.fixture
def model(tiny_lm, monkeypatch):
    """With latencies that count: multiplications in place of milliseconds."""

    def multiplications(f, x):
        layers = [f] if hasattr(f, "in_features") else f.layers
        return float(x.numel() * sum(layer.out_features * layer.precision.w_bits for layer in layers))

    monkeypatch.setattr(latency, "_milliseconds", multiplications)
    model = SwitchableModel(tiny_lm("llama"))
    model.add_adapters({8: LoraSpec(2, 4), 4: LoraSpec(2, 4)})
    model.set_precision(8)
    return model


def test_a_group_takes_what_its_layers_take_together(model):
    precisions = [Precision.parse(p) for p in (32, 8, "w4a8")]
    found = latency.group_latencies(model, precisions, tokens=6)
    sizes = {layer.name: layer.weights for layer in model.infos}
    expected = [[6 * sum(map(sizes.get, names)) * p.w_bits for p in precisions] for names in names_by_group(model.infos).values()]
    assert np.array_equal(found, expected)
    assert model.configuration.average_bits(model.infos) == (8, 8)


def test_a_pass_is_of_the_deployed_model_at_each_configuration(model):
    found = latency.pass_latencies(model, {"a": 8, "b": 4}, batch=2, tokens=3)
    assert found["a"] == 2 * found["b"] > 0
    assert model.configuration.average_bits(model.infos) == (8, 8)


def test_a_latency_is_a_positive_time():
    assert latency._milliseconds(torch.exp, torch.zeros(3)) > 0


def test_the_peak_is_of_what_lives_at_once():
    kept = torch.ones(1000)

    def work() -> None:
        first = kept * 2
        second = first + 1
        del first
        third = second + 1
        assert third.numel() == second.numel()

    # Two of 4,000 bytes at a time; three together would be 12,000, and all that was ever allocated too.
    assert 8_000 <= latency.peak_bytes(work, torch.device("cpu")) < 9_000
