"""Noise in rounding is that of half a step: codes are whole, within a step of the number, and right in expectation."""

from __future__ import annotations

import pytest
import torch

from qatlib.arguments import QuantizerArguments
from qatlib.attacks.rounding import noisy_rounding
from qatlib.lora import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def make(tiny_lm):
    def made(**quantizer):
        model = SwitchableModel(tiny_lm(), QuantizerArguments(**quantizer))
        model.add_adapters({SHARED: LoraSpec(2, 4)})
        for layer in model.layers:
            torch.nn.init.normal_(layer.adapters[str(SHARED)].lora_B)
        return model.eval()

    return made


@pytest.mark.parametrize("how", [{}, {"rotation": "hadamard", "grid": "midrise"}], ids=["plain", "rotated"])
@torch.no_grad()
def test_in_expectation_nothing_is_rounded(make, how):
    model = make(**how)
    layer, x = model.layers[0], torch.randn(3, model.layers[0].in_features)
    layer.precision = Precision(4, 32)
    exact = layer(x)
    layer.precision = Precision(4, 4)
    rounded, source = layer(x), generator()
    with noisy_rounding(model, source):
        drawn = torch.stack([layer(x) for _ in range(300)])
    # 300 draws leave 1/17 of a draw's own error, which is about twice that of rounding to the nearest: 0.07, rotated 0.15.
    assert (drawn.mean(0) - exact).norm() < 0.2 * (rounded - exact).norm()
    assert drawn.std(0).min() > 0 and layer.precision == Precision(4, 4)


@torch.no_grad()
def test_codes_are_whole_and_within_a_step(make):
    model = make()
    layer = model.layers[0]
    layer.adapters, layer.bias = torch.nn.ModuleDict(), None
    layer.precision = Precision(32, 4)
    x = torch.randn(50, layer.in_features)
    scale = layer.input_quantizer(4).scale(x)
    with noisy_rounding(model, generator()):
        seen = torch.linalg.lstsq(layer.oriented_weight.double(), layer(x).double().T).solution.T
    codes = seen / scale
    assert (codes - codes.round()).abs().max() < 1e-3  # 1e-6; codes that are not whole are up to 0.5 off
    assert ((codes - x / scale).abs() < 1 + 1e-3).all() and (codes.round() != (x / scale).round()).any()


def test_gradients_pass_and_draws_follow_the_generator(make, tokens):
    model, found = make(), []
    model.set_precision(4)
    for seed in (0, 0, 1):
        embeds = model.embed(tokens).detach().requires_grad_()
        with noisy_rounding(model, generator(seed)):
            output = model(inputs_embeds=embeds).start
        (gradient,) = torch.autograd.grad(output.sum(), embeds)
        assert (gradient != 0).any()
        found.append(output.detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@torch.no_grad()
def test_at_full_precision_and_afterwards_nothing_changes(make, tokens):
    model = make()
    before = model(tokens).start
    with noisy_rounding(model, generator()):
        assert torch.equal(model(tokens).start, before)
        with model.at(4):
            assert not torch.equal(model(tokens).start, before)
    assert torch.equal(model(tokens).start, before)
