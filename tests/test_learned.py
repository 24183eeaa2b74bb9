"""The choice is learned, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qatlib.learned import learn_allocation
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision, names_by_group
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_tokenizer, generate
from qatlib.search import Allocation, weight_bits

TOKENIZER = build_tokenizer()
FEATURES = featurize(generate(12, 0), TOKENIZER, 96, 32)
WIDTHS = tuple(Precision.parse(b) for b in (8, 2))
HOW = {"steps": 30, "batch_size": 6, "learning_rate": 0.3, "pad_id": 1, "seed": 0}


@pytest.fixture
def model(tiny_lm):
    model = SwitchableModel(tiny_lm("llama", vocab_size=len(TOKENIZER), max_position_embeddings=96))
    model.add_adapters({b: LoraSpec(2, 4) for b in (2, 8)})
    return model


@pytest.fixture
def problem(model):
    bits = weight_bits(model.infos, WIDTHS)
    return Allocation(tuple(names_by_group(model.infos)), WIDTHS, np.zeros_like(bits), bits)


def test_a_heavy_penalty_drives_the_expected_cost_to_the_budget(model, problem):
    found = learn_allocation(model, FEATURES, problem, 4, **HOW, penalty=50)
    assert found.metrics["expected_cost"].iloc[0] == pytest.approx(5)  # equal shares of 8 and 2 bits
    assert found.metrics["expected_cost"].iloc[-1] < 4.3  # the budget is 4, the start 5; 2.05 here
    assert np.allclose(found.shares.sum(1), 1)


def test_the_choice_alone_is_trained(model, problem):
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.set_precision(8)
    first = learn_allocation(model, FEATURES, problem, 4, **HOW, penalty=5)
    again = learn_allocation(model, FEATURES, problem, 4, **HOW, penalty=5)
    assert np.array_equal(first.shares, again.shares)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert all(layer.precision == Precision.parse(8) and "forward" not in vars(layer) for layer in model.layers)


def test_without_a_penalty_that_binds_precision_is_bought_where_it_helps(model, problem):
    """A model whose wide layers give every answer and whose narrow ones add noise: the share of the wide ones grows."""
    model.set_precision(8)
    with torch.no_grad():
        model.qa_outputs.weight.mul_(100)  # a sure model: its own answers cost it next to nothing
    features = [answered_by(model, feature) for feature in FEATURES]
    for p in model.adapter_parameters(2):
        torch.nn.init.normal_(p, std=0.1)
    found = learn_allocation(model, features, problem, 8, **HOW, penalty=1)
    assert found.metrics["span_loss"].iloc[-1] < found.metrics["span_loss"].iloc[0]
    assert found.shares[:, 0].mean() > 0.6  # 0.5 to begin with; 0.80 to 0.99 with six seeds, on processors of two kinds


def answered_by(model, feature):
    """The feature with the model's own answer."""
    with torch.no_grad():
        output = model(torch.tensor([feature.input_ids]))
    first = feature.context_start
    start, end = (first + int(logits[0, first:].argmax()) for logits in (output.start, output.end))
    return replace(feature, start=start, end=end)
