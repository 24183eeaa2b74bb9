"""Draws are those of the threat model, and tokens take one precision each."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from qatlib.attacks.defence import every, per_layer, per_token, static
from qatlib.lora import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision

PRECISIONS = [Precision(b, b) for b in (8, 4, 2)]


@pytest.fixture
def model(tiny_lm):
    made = SwitchableModel(tiny_lm())
    made.add_adapters({SHARED: LoraSpec(2, 4)})
    return made.eval()


def widths(configuration):
    return {p.w_bits for p in configuration.values()}


def test_draws(model):
    assert [widths(c) for c in static(PRECISIONS[1], model)(7)] == [{4}]
    assert [widths(c) for c in every(PRECISIONS, model)(7)] == [{8}, {4}, {2}]
    mixed = per_layer(PRECISIONS, model, 3, draws=20)(0)
    assert len(mixed) == 20 and sum(len(widths(c)) > 1 for c in mixed) > 10  # eight layers agree once in 2,187: all 20
    drawn = Counter(p.w_bits for c in mixed for p in c.values())
    assert set(drawn) == {8, 4, 2} and min(drawn.values()) > sum(drawn.values()) / 5  # 44 of 160; 53 ± 6
    assert per_layer(PRECISIONS, model, 3)(5) == per_layer(PRECISIONS, model, 3)(5) != per_layer(PRECISIONS, model, 3)(6)


def test_one_precision_token_by_token_is_that_precision(model, tokens):
    with torch.no_grad():
        model.set_precision(4)
        expected = model(tokens).start
        model.set_precision(8)
        with per_token([PRECISIONS[1]], model, torch.Generator().manual_seed(0)):
            assert torch.equal(model(tokens).start, expected)
        assert widths(model.configuration) == {8}


def test_every_token_takes_one_of_the_layers_results(model):
    layer, x = model.layers[0], torch.randn(2, 40, model.layers[0].in_features)
    results = []
    for p in PRECISIONS:
        layer.precision = p
        with torch.no_grad():
            results.append(layer(x))
    with torch.no_grad(), per_token(PRECISIONS, model, torch.Generator().manual_seed(0)):
        mixed = layer(x)
    taken = torch.stack([(mixed == r).all(-1) for r in results])
    assert (taken.sum(0) == 1).all() and taken.flatten(1).sum(1).min() > 10  # 20 of 80; 27 ± 4


def test_a_draw_follows_the_generator(model, tokens):
    found = []
    for seed in (0, 0, 1):
        with torch.no_grad(), per_token(PRECISIONS, model, torch.Generator().manual_seed(seed)):
            found.append(model(tokens).start)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
