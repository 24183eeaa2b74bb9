"""The deployed layer computes what the switchable layer computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qatlib.arguments import QuantizerArguments
from qatlib.integer import IntegerLinear
from qatlib.kernels import CodeMatrix, FloatCodes
from qatlib.layers import SHARED, LoraSpec, SwitchableLinear
from qatlib.precision import Precision
from qatlib.quantizer import dequantize, fake_quantize_dynamic, minmax_scale, quantize
from tests.quantizers import EVERY_OPTION

X = torch.randn(5, 7, 12, generator=torch.Generator().manual_seed(3))
SPECS = {w: LoraSpec(3, 6) for w in (2, 3, 4, 5, 6, 7, 8, 12, 32)}


def switchable(kind: str = "linear", adapters: bool = True, bias: bool = True, **quantizer: object) -> SwitchableLinear:
    torch.manual_seed(0)
    base = nn.Linear(12, 20, bias) if kind == "linear" else Conv1D(20, 12)
    for parameter in base.parameters():
        nn.init.normal_(parameter)
    layer = SwitchableLinear(base, QuantizerArguments(**quantizer)).eval()  # type: ignore[arg-type]
    if adapters:
        layer.add_adapters(SPECS)
        for adapter in layer.adapters.values():
            nn.init.normal_(adapter.lora_B)
    layer.observer.observe(X * 0.7)  # a static range that clips
    return layer


@pytest.fixture(autouse=True)
def _answering():
    """No gradient is wanted: the switchable layer multiplies codes."""
    with torch.no_grad():
        yield


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Within fp32 rounding of sums of about 20 terms."""
    return bool(((ours - theirs).abs() <= 3e-6 * theirs.abs().max()).all())


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("w_bits", [2, 3, 4, 5, 6, 7, 8, 12, 32])
@pytest.mark.parametrize("a_bits", [2, 4, 8, 12, 32])
def test_every_precision_is_the_switchable_layers(kind, w_bits, a_bits):
    layer = switchable(kind)
    deployed = IntegerLinear.of(layer, [w_bits])
    layer.precision = deployed.precision = Precision(w_bits, a_bits)
    assert torch.equal(deployed(X), layer(X))


@pytest.mark.parametrize("quantizer", [{"weights": "per_tensor"}, {"activations": "per_tensor_static"}, {"grid": "full"}])
@pytest.mark.parametrize("precision", ["8", "w4a8", "2", "w4a32"])
@pytest.mark.parametrize("bare", [True, False])
def test_so_is_every_quantizer_with_and_without_adapters_and_bias(quantizer, precision, bare):
    layer = switchable(adapters=not bare, bias=not bare, **quantizer)
    layer.precision = p = Precision.parse(precision)
    deployed = IntegerLinear.of(layer, [p.w_bits])
    deployed.precision = p
    assert torch.equal(deployed(X), layer(X))


WIDE = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(4))
BEYOND_MINMAX = {
    "groups": {"weights": "per_group", "group_size": 16},
    "midrise": {"grid": "midrise", "clipping": "mse"},
    "rotated": {"rotation": "hadamard"},
    "nested": {"nested": True},
    "all": EVERY_OPTION,
}


@pytest.mark.parametrize("quantizer", BEYOND_MINMAX.values(), ids=BEYOND_MINMAX)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("precision", ["8", "w4a8", "2", "3", "w4a32", "w32a8", "w12a8", "32"])
def test_so_is_every_option_of_the_quantizer_with_clips_and_learned_steps(quantizer, shared, precision):
    torch.manual_seed(0)
    layer = SwitchableLinear(nn.Linear(64, 24), QuantizerArguments(**quantizer)).eval()  # type: ignore[arg-type]
    p = Precision.parse(precision)
    layer.add_adapters({SHARED: LoraSpec(3, 6)} if shared else {p.w_bits: LoraSpec(3, 6)})
    layer.learn_steps({p.w_bits} - {32}, {p.a_bits} - {32})
    for name, parameter in layer.named_parameters():
        if "lora_B" in name or "steps" in name or "clips" in name:
            nn.init.normal_(parameter, -0.1, 0.1)
    stored = IntegerLinear.of(layer, [p.w_bits]).stored()
    deployed = IntegerLinear.restore(stored, p.w_bits, layer.quantizer)
    layer.precision = deployed.precision = p
    assert torch.equal(deployed(WIDE), layer(WIDE))


def test_nested_layers_are_what_deployment_derives_from_their_widest_codes():
    layer = SwitchableLinear(nn.Linear(64, 24), QuantizerArguments(nested=True, clipping="mse", rotation="hadamard")).eval()
    deployed = IntegerLinear.of(layer, [2, 3, 4, 6, 8])
    for w_bits in (2, 3, 4, 6, 8):
        assert torch.equal(deployed.codes(w_bits), layer.codes(w_bits)[0])


def test_groups_of_input_columns():
    weight, bias = torch.randn(20, 12), torch.randn(20)
    scale = minmax_scale(weight.view(20, 3, 4), 4, 2)
    codes = quantize(weight.view(20, 3, 4), scale, 4)
    deployed = IntegerLinear(codes.view(20, 12), 4, {4: scale}, quantizer=QuantizerArguments(), bias=bias)
    for a_bits, x in ((8, fake_quantize_dynamic(X, 8)), (32, X)):
        deployed.precision = Precision(4, a_bits)
        assert close(deployed(X), x @ dequantize(codes, scale).view(20, 12).t() + bias)


@pytest.mark.parametrize(("kernel", "kept"), [(CodeMatrix, 240), (FloatCodes, 0)])
def test_widths_below_the_widest_are_derived_when_used_and_integers_of_one_are_kept(kernel, kept, monkeypatch):
    monkeypatch.setattr("qatlib.integer.exact_kernel", lambda device: kernel)  # on any processor: no sum is looked at
    deployed = IntegerLinear.of(switchable(), [2, 4, 8])
    assert deployed.memory() == {"codes": 240, "scales": 3 * 80, "derived": 0}
    for w_bits, derived in ((4, kept), (2, kept), (8, 0)):
        deployed.precision = Precision(w_bits, 8)
        deployed(X)
        assert deployed.memory()["derived"] == derived
    codes, scale = switchable().codes(8)
    assert torch.equal(deployed.codes(4), quantize(codes, minmax_scale(switchable().weight, 4, 1) / scale, 4))


def test_derived_widths_switch_exactly_there_and_back():
    deployed = IntegerLinear.of(switchable(), [2, 4, 8])
    seen: dict[int, torch.Tensor] = {}
    for w_bits in (8, 4, 2, 4, 8, 2):
        deployed.precision = Precision(w_bits, 8)
        y = deployed(X)
        assert torch.equal(y, seen.setdefault(w_bits, y))


def test_a_layer_is_restored_from_what_it_stores():
    layer = switchable(activations="per_tensor_static")
    deployed = IntegerLinear.of(layer, [3, 8])
    again = IntegerLinear.restore(deployed.stored(), 8, deployed.quantizer)
    for w_bits in (8, 3):
        again.precision = deployed.precision = Precision(w_bits, 8)
        assert torch.equal(again(X), deployed(X))


@pytest.mark.parametrize("option", [{}, {"weights": "per_tensor"}, EVERY_OPTION | {"group_size": 12}], ids=str)
def test_what_it_stores_under_any_quantizer_is_accepted(option):
    layer = switchable(**option)
    for bits in (8, 32):
        deployed = IntegerLinear.of(layer, [bits])
        again = IntegerLinear.restore(deployed.stored(), bits, deployed.quantizer)
        again.precision = deployed.precision = Precision(bits, 8)
        assert torch.equal(again(X), deployed(X))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale.8": None}, "codes of 8 bits, without a scale for them"),
        ({"scale.8": torch.ones(1)}, r"scale.8 has shape \(1,\), expected is \(20, 1\)"),
        ({"scale.x": torch.ones(20, 1)}, "scale.x is not known"),
        ({"scale.1": torch.ones(20, 1)}, "scale.1 is not known"),
        ({"bias": torch.ones(12)}, r"bias has shape \(12,\), expected is \(20,\)"),
        ({"bias": torch.ones(20, dtype=torch.int8)}, "bias is of type torch.int8"),
        ({"codes": torch.ones(20, 12)}, "codes is of type torch.float32"),
        ({"lora_A.8": torch.ones(3, 11)}, r"lora_A.8 has shape \(3, 11\), expected is \(3, 12\)"),
        ({"lora_B.8": torch.ones(20, 4)}, r"lora_B.8 has shape \(20, 4\), expected is \(20, 3\)"),
        ({"lora_B.8": None}, "the adapter for 8 bits has one factor, expected are two"),
        ({"clip.8": torch.ones(1)}, "clip.8 has shape"),
        ({"input_absmax": torch.ones(1)}, "input_absmax has shape"),
        ({"other": torch.ones(1)}, "other has shape"),
    ],
    ids=str,
)
def test_what_it_never_stores_is_refused(changed, message):
    stored = IntegerLinear.of(switchable(), [8]).stored() | changed
    with pytest.raises(ValueError, match=message):
        IntegerLinear.restore({name: value for name, value in stored.items() if value is not None}, 8, QuantizerArguments())


def test_casting_the_model_around_it_leaves_the_layer_as_it_is():
    deployed = IntegerLinear.of(switchable(), [8])
    deployed.precision = Precision(8, 8)
    before = deployed(X)
    deployed.bfloat16()
    assert torch.equal(deployed(X), before) and deployed(X.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="move the model before it is deployed"):
        deployed.to("meta")


def test_where_integer_sums_are_not_exact_floats_are_multiplied(monkeypatch):
    monkeypatch.setattr("qatlib.integer.exact_kernel", lambda device: FloatCodes)
    layer = switchable()
    layer.precision = Precision(8, 8)
    deployed = IntegerLinear.of(layer, [8])
    deployed.precision = Precision(8, 8)
    assert torch.equal(deployed(X), layer(X))


def test_what_is_missing_is_said():
    layer = switchable(adapters=False, activations="per_tensor_static")
    layer.add_adapters({4: LoraSpec(2, 2)})
    with pytest.raises(ValueError, match="no adapter for 5-bit weights; there is one for 4 bits"):
        IntegerLinear.of(layer, [4, 5])
    layer.observer.absmax = None
    deployed = IntegerLinear.of(layer, [4])
    deployed.precision = Precision(4, 8)
    with pytest.raises(RuntimeError, match="calibration"):
        deployed(X)
