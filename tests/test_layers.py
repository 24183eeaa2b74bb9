"""The switchable layer: exact at full precision, what it computes below, who gets gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qatlib.arguments import QuantizerArguments
from qatlib.layers import SwitchableLinear, multiplied_as_floats
from qatlib.lora import SHARED, LoraSpec
from qatlib.precision import Precision
from qatlib.quantizer import fake_quantize, fake_quantize_dynamic, minmax_scale, sqnr_db
from tests.quantizers import EVERY_OPTION

SPECS = {4: LoraSpec(2, 4), 8: LoraSpec(3, 3, 0.5), 32: LoraSpec(4, 8)}
ROUNDING = 1e-4  # fp32's, in sums of 64 products up to 30, added up in any order: 64 * 30 * 2^-24; a code's step is 100 times it


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
    assert torch.allclose(layer(X), expected, atol=ROUNDING)


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
    assert torch.allclose(layer.weight.grad, X.sum((0, 1)).expand(20, 12), atol=ROUNDING)


def test_merging_an_adapter_keeps_the_function():
    for kind in ("linear", "conv1d"):
        layer = switchable(kind)
        stir(layer)
        y = layer(X)
        layer.merge_adapter(32)
        layer.adapters = nn.ModuleDict()
        assert torch.allclose(layer(X), y, atol=ROUNDING)


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


# -- what a quantizer can do beyond one min-max scale a channel -------------------------------------------------------

WIDE = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(3))
OPTIONS = {
    "group": {"weights": "per_group", "group_size": 16},
    "mse": {"clipping": "mse"},
    "midrise": {"grid": "midrise", "clipping": "mse"},
    "rotated": {"rotation": "hadamard"},
    "nested": {"nested": True, "clipping": "mse"},
    "all": EVERY_OPTION,
}


def wide(kind: str = "linear", **quantizer: object) -> SwitchableLinear:
    """A layer of 64 inputs, so that groups and blocks mean something."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 24) if kind == "linear" else Conv1D(24, 64)
    nn.init.normal_(layer.weight)
    return SwitchableLinear(layer, QuantizerArguments(**quantizer)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_change_nothing_at_full_precision(kind, options):
    layer = wide(kind, **options)
    before = nn.functional.linear(WIDE, layer.oriented_weight, layer.bias)
    assert torch.equal(layer(WIDE), before)
    layer.add_adapters(SPECS)
    assert torch.equal(layer(WIDE), before)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_weight_in_use_is_what_codes_and_scale_say(options, bits):
    layer = wide(**options)
    layer.precision = Precision(bits, 32)
    codes, scale = layer.codes(bits)
    groups = codes.view(24, -1, 16) if scale.dim() == 3 else codes
    assert codes.shape == (24, 64) and codes.dtype == torch.int8
    x = layer.rotation.apply(WIDE)
    assert torch.allclose(layer(WIDE), nn.functional.linear(x, (groups * scale).view(24, 64), layer.bias), atol=ROUNDING)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("precision", ["8", "w4a8", "w4a32", "w32a8"])
def test_a_trainable_base_gives_what_a_frozen_one_gives(options, precision):
    layer = wide(**{**options, "nested": False})
    layer.precision = Precision.parse(precision)
    frozen = layer(WIDE)
    layer.weight.requires_grad_()
    assert torch.allclose(layer(WIDE), frozen, atol=ROUNDING)
    layer(WIDE).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_outputs_come_near_the_original_with_more_bits(options):
    layer = wide(**options)
    plain = layer(WIDE)
    noise = []
    for bits in (2, 3, 4, 8):
        layer.precision = Precision(bits, 8)
        noise.append(sqnr_db(plain, layer(WIDE)))
    assert noise == sorted(noise) and noise[-1] > 30  # 42 dB at 8 bits, whatever the options; 20 to 22 at 4


def test_each_option_lowers_the_error_it_is_for():
    def noise(w_bits: int, a_bits: int = 32, x: torch.Tensor = WIDE, **options: object) -> float:
        layer = wide(**options)
        plain = layer(x)
        layer.precision = Precision(w_bits, a_bits)
        return sqnr_db(plain, layer(x))

    assert noise(3, clipping="mse") > noise(3)
    assert noise(3, weights="per_group", group_size=16) > noise(3)
    assert noise(2, clipping="mse", grid="midrise") > noise(2, clipping="mse")
    outlier = WIDE.clone()
    outlier[..., 5] *= 30  # one channel, as in language models (Dettmers et al. 2022)
    assert noise(32, 4, outlier, rotation="hadamard") > noise(32, 4, outlier) + 3  # 8.9 dB, and 9 to 10 on four other inputs


def test_a_clip_is_the_share_at_which_an_activation_grid_ends():
    layer = wide()
    layer.precision = Precision(32, 3)
    layer.clips["3"] = nn.Parameter(torch.tensor(0.5).log())
    clipped = fake_quantize(WIDE, minmax_scale(WIDE, 3, -1) / 2, 3)
    expected = nn.functional.linear(clipped, layer.weight, layer.bias)
    assert torch.allclose(layer(WIDE), expected, atol=ROUNDING)


@pytest.mark.parametrize("options", [{}, OPTIONS["all"]], ids=["plain", "all"])
def test_learned_steps_start_where_clipping_put_them_and_change_the_codes(options):
    layer = wide(**options)
    layer.precision = Precision(3, 4)
    before = layer(WIDE)
    layer.learn_steps([3], [4])
    layer.train()
    assert torch.allclose(layer(WIDE), before, atol=ROUNDING)
    optimizer = torch.optim.SGD([layer.steps["3"], layer.clips["4"]], lr=1e-3)
    layer(WIDE).square().sum().backward()
    assert layer.steps["3"].grad.abs().sum() > 0 and layer.clips["4"].grad.abs() > 0 and layer.weight.grad is None
    optimizer.step()
    trained = layer(WIDE)
    assert not torch.allclose(trained, before, atol=10 * ROUNDING)  # by 15
    assert torch.allclose(layer.eval()(WIDE), trained, atol=ROUNDING)  # codes of the steps as they are now


def test_a_learned_step_reduces_the_error_that_it_is_trained_on():
    layer = wide()
    target = layer(WIDE)
    layer.precision = Precision(3, 32)
    layer.learn_steps([3], [])
    optimizer = torch.optim.Adam([layer.steps["3"]], lr=0.02)
    before = sqnr_db(target, layer(WIDE))
    layer.train()
    for _ in range(60):
        optimizer.zero_grad()
        (layer(WIDE) - target).square().mean().backward()
        optimizer.step()
    assert sqnr_db(target, layer.eval()(WIDE)) > before


def test_one_adapter_serves_every_width():
    layer = switchable(adapters=False)
    layer.add_adapters({SHARED: LoraSpec(2, 4)})
    stir(layer)
    for precision in ("32", "8", "5", "w4a8"):
        layer.precision = p = Precision.parse(precision)
        with_it = layer(X)
        adapter = layer.adapters.pop(str(SHARED))
        seen = X if p.a_bits == 32 else fake_quantize_dynamic(X, p.a_bits)
        assert torch.allclose(with_it, layer(X) + adapter(seen), atol=ROUNDING)
        layer.adapters[str(SHARED)] = adapter


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_merging_a_rotated_adapter_keeps_the_function(kind):
    layer = wide(kind, rotation="hadamard")
    layer.add_adapters({32: LoraSpec(4, 8)})
    stir(layer)
    y = layer(WIDE)
    layer.merge_adapter(32)
    layer.adapters = nn.ModuleDict()
    assert torch.allclose(layer(WIDE), y, atol=ROUNDING)


@pytest.mark.parametrize("precision", ["8", "w4a8", "w4a2", "w4a32", "32"])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_answers_are_the_same_by_integers_by_floats_and_but_for_rounding_where_gradients_are_wanted(kind, precision):
    layer = switchable(kind)
    stir(layer)
    layer.precision = Precision.parse(precision)
    with_gradient = layer(X).detach()
    with torch.no_grad():
        by_integers = layer(X)
        with multiplied_as_floats([layer]):
            by_floats = layer(X)
        again = layer(X)
    assert torch.equal(by_integers, by_floats) and torch.equal(again, by_integers)
    torch.testing.assert_close(by_integers, with_gradient, rtol=1e-5, atol=ROUNDING)
