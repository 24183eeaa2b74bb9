"""Perturbations are as long as the filters they move, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qatlib.landscape import filter_normalized, sharpness, weights_in_use
from qatlib.lora import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_tokenizer, generate

TOKENIZER = build_tokenizer()
QUESTIONS = generate(8, 0)
FEATURES = featurize(QUESTIONS, TOKENIZER, 96, 32)
HOW = {"pad_id": 1, "batch_size": 4, "max_answer_tokens": 10}


@pytest.fixture(params=["adapters", "shared", "base"])
def model(request, tiny_lm):
    made = SwitchableModel(tiny_lm(vocab_size=len(TOKENIZER), n_positions=96))
    if request.param != "base":
        made.add_adapters({SHARED: LoraSpec(2, 4)} if request.param == "shared" else {b: LoraSpec(2, 4) for b in (4, 8)})
        for parameter in made.lm.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    made.set_precision(4)
    return made.eval()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_every_filter_of_a_direction_is_as_long_as_the_weights(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    weight[0] = 0
    found = filter_normalized(weight, generator)
    torch.testing.assert_close(found.norm(dim=1), weight.norm(dim=1))
    assert not found[0].any() and (rows == 1 or columns == 1 or not torch.equal(found, weight))


def test_what_is_moved_is_what_is_in_use(model):
    found = list(weights_in_use(model))
    before = model(torch.tensor([FEATURES[0].input_ids])).start
    for weight in found:
        with torch.no_grad():
            weight.mul_(1.5)
    assert not torch.equal(model(torch.tensor([FEATURES[0].input_ids])).start, before)
    assert len(found) == len(model.layers) * (2 if model.lora else 1)


def test_the_weights_and_their_codes_are_put_back(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answer = model(torch.tensor([FEATURES[0].input_ids])).start
    found = sharpness(model, QUESTIONS, FEATURES, [0.1, 1.0], 2, 7, **HOW)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(torch.tensor([FEATURES[0].input_ids])).start, answer)
    assert set(found.groupby(["draw", "radius"]).size()) == {len(QUESTIONS)} and len(found) == 4 * len(QUESTIONS)


def test_a_longer_step_changes_more_and_none_changes_nothing(model):
    found = sharpness(model, QUESTIONS, FEATURES, [0.0, 0.01, 1.0], 3, 7, **HOW)
    spread = found["loss_change"].abs().groupby(found["radius"]).mean()
    assert spread[0.0] < 1e-6 < spread[0.01] < spread[1.0]
    again = sharpness(model, QUESTIONS, FEATURES, [0.0, 0.01, 1.0], 3, 7, **HOW)
    assert found.equals(again)
