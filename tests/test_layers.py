"""The switchable layer: exact at full precision, what it computes below, who gets gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qatlib.arguments import QuantizerArguments
from qatlib.layers import LoraSpec, SwitchableLinear
from qatlib.precision import Precision
from qatlib.quantizer import fake_quantize_dynamic

SPECS = {4: LoraSpec(2, 4), 8: LoraSpec(3, 3, 0.5), 32: LoraSpec(4, 8)}


def base(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(12, 20) if kind == "linear" else Conv1D(20, 12)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def switchable(kind: str = "linear", adapters: bool = True, **quantizer: object) -> SwitchableLinear:
    layer = SwitchableLinear(base(kind), QuantizerArguments(**quantizer)).eval()  # type: ignore[arg-type]
    if adapters:
        layer.add_adapters(SPECS)
    return layer


def stir(layer: SwitchableLinear) -> None:
    """Give the adapters something to say."""
    for adapter in layer.adapters.values():
        nn.init.normal_(adapter.lora_B)


X = torch.randn(5, 7, 12, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_fresh_at_full_precision_is_the_replaced_layer(kind):
    assert torch.equal(switchable(kind)(X), base(kind)(X))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("weights", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("precision", ["8", "w4a8", "w32a4", "w4a32", "w8a2"])
def test_output_is_the_formula(kind, weights, precision):
    layer = switchable(kind, weights=weights)
    stir(layer)
    layer.precision = p = Precision.parse(precision)
    x = X if p.a_bits == 32 else fake_quantize_dynamic(X, p.a_bits)
    w = layer.weight.t() if kind == "conv1d" else layer.weight
    if p.w_bits != 32:
        w = fake_quantize_dynamic(w, p.w_bits, 1 if weights == "per_channel" else None)
    adapter, spec = layer.adapters[str(p.w_bits)], SPECS[p.w_bits]
    expected = x @ w.t() + layer.bias + spec.alpha / spec.rank * (x @ adapter.lora_A.t() @ adapter.lora_B.t())
    assert torch.allclose(layer(X), expected, atol=1e-4)


def test_switching_there_and_back_is_bit_exact():
    layer = switchable()
    stir(layer)
    before = {}
    for bits in (8, 4, 32, 4, 8, 32):
        layer.precision = Precision(bits, bits)
        y = layer(X)
        assert torch.equal(y, before.setdefault(bits, y))


def test_codes_are_computed_once_and_forgotten_when_weights_change():
    layer = switchable(adapters=False)
    codes, scale = layer.codes(4)
    assert layer.codes(4)[0] is codes and codes.dtype == torch.int8 and scale.shape == (20, 1)
    layer.load_state_dict({**layer.state_dict(), "weight": layer.weight.detach() * 2})
    assert layer.codes(4)[0] is not codes and torch.allclose(layer.codes(4)[1], scale * 2)
    layer.double()
    assert layer.codes(4)[1].dtype == torch.float64


def test_codes_follow_a_change_in_place_and_survive_inference_mode():
    layer = switchable()
    layer.precision = Precision(4, 8)
    with torch.inference_mode():
        before = layer(X)
    layer(X).sum().backward()
    with torch.no_grad():
        layer.weight.mul_(-1)
    assert not torch.equal(layer(X), before)


def test_only_the_active_adapter_gets_gradients():
    layer = switchable()
    layer.precision = Precision(4, 8)
    layer(X).square().mean().backward()
    touched = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert touched == {"adapters.4.lora_A", "adapters.4.lora_B"}


def test_a_trainable_base_is_quantized_with_a_straight_through_gradient():
    layer = switchable(adapters=False)
    layer.precision = Precision(4, 32)
    frozen = layer(X)
    layer.weight.requires_grad_()
    assert torch.equal(layer(X), frozen)
    layer(X).sum().backward()
    assert torch.allclose(layer.weight.grad, X.sum((0, 1)).expand(20, 12), atol=1e-4)


def test_merging_an_adapter_keeps_the_function():
    for kind in ("linear", "conv1d"):
        layer = switchable(kind)
        stir(layer)
        y = layer(X)
        layer.merge_adapter(32)
        layer.adapters = nn.ModuleDict()
        assert torch.allclose(layer(X), y, atol=1e-4)


def test_dropout_acts_in_training_only():
    layer = switchable()
    stir(layer)
    layer.precision = Precision(8, 8)
    assert torch.equal(layer(X), layer(X))
    layer.train()
    assert not torch.equal(layer(X), layer(X))


def test_a_width_without_adapter_is_refused_but_the_base_is_not():
    layer = SwitchableLinear(base("linear"), QuantizerArguments())
    layer.add_adapters({4: LoraSpec(2, 2)})
    assert torch.equal(layer(X), base("linear")(X))
    layer.precision = Precision(5, 8)
    with pytest.raises(ValueError, match="no adapter for 5-bit weights; there is one for 4 bits"):
        layer(X)


def test_static_scales_need_a_calibration():
    layer = switchable(adapters=False, activations="per_tensor_static")
    layer.precision = Precision(8, 8)
    with pytest.raises(RuntimeError, match="calibration"):
        layer(X)
    layer.observer.observe(X)
    assert torch.equal(layer(X), nn.functional.linear(fake_quantize_dynamic(X, 8, None), layer._quantized_weight(8), layer.bias))
