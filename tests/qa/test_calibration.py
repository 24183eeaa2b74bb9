"""Ranges, clips and codes come from what the layers are given, and leave the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from qatlib.arguments import QuantizerArguments
from qatlib.compensation import output_error
from qatlib.deployed import deploy
from qatlib.lora import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.qa import calibration
from qatlib.qa.calibration import calibrate, calibrate_clips, compensate, set_static_range, start_adapters
from qatlib.qa.evaluate import evaluate_spans
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_model, build_tokenizer, generate
from qatlib.quantizer import fake_quantize, minmax_scale

TOKENIZER = build_tokenizer()
QUESTIONS = generate(30, 0)
FEATURES = featurize(QUESTIONS, TOKENIZER, 128, 32)
HOW = {"pad_id": 1, "batch_size": 7}
IDS = torch.tensor([FEATURES[5].input_ids])
COMPENSATED = QuantizerArguments(rounding="compensated", rotation="hadamard", clipping="mse", grid="midrise")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SwitchableModel(build_model(2, 2, 32, 0)).eval()


def test_calibration_sees_what_every_layer_is_given_and_keeps_the_configuration(model):
    model.set_quantizer(QuantizerArguments(activations="per_tensor_static"))
    model.set_precision({"*": 8, "mlp": 4})
    before = model.configuration
    calibrate(model, FEATURES, momentum=0.0)
    assert model.configuration == before and not any(layer.observing for layer in model.layers)
    seen = {}
    hook = model.layers[0].register_forward_pre_hook(lambda layer, x: seen.update(last=float(x[0].abs().max())))
    calibrate(model, FEATURES, momentum=0.0)
    hook.remove()
    assert float(model.layers[0].observer.absmax) == pytest.approx(seen["last"])
    evaluate_spans(model, QUESTIONS, FEATURES, **HOW, max_answer_tokens=10)


def test_a_static_range_is_the_same_everywhere(model):
    set_static_range(model, 2.5)
    assert {float(layer.observer.absmax) for layer in model.layers} == {2.5}
    set_static_range(model, None)
    assert {layer.observer.absmax for layer in model.layers} == {None}


@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_calibrated_clips_lower_the_error_of_what_layers_are_given(model, rotation):
    model.set_quantizer(QuantizerArguments(clipping="mse", rotation=rotation, grid="midrise"))
    seen: dict[int, torch.Tensor] = {}
    for i, layer in enumerate(model.layers):
        layer.register_forward_pre_hook(lambda layer, x, i=i: seen.__setitem__(i, layer.rotation.apply(x[0])))
    calibrate_clips(model, FEATURES[:3], [3, 8])
    observers = [type(layer.observer).__name__ for layer in model.layers]
    assert set(observers) == {"EMAObserver"} and not any(layer.observing for layer in model.layers)
    with torch.no_grad():
        model(torch.tensor([FEATURES[0].input_ids]))
    for i, layer in enumerate(model.layers):
        clip = layer.clips["3"].exp()
        assert 0.1 < clip < 1 and not layer.clips["3"].requires_grad and layer.clips["8"] > layer.clips["3"]
        clipped, whole = (fake_quantize(seen[i], minmax_scale(seen[i], 3, -1) * c, 3) for c in (clip, 1))
        assert (clipped - seen[i]).square().sum() < (whole - seen[i]).square().sum()


def test_compensated_codes_lower_the_output_error_of_every_layer(model):
    model.set_quantizer(COMPENSATED)
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, x, i=i: seen.__setitem__(i, layer.rotation.apply(x[0]).flatten(0, -2)))
        for i, layer in enumerate(model.layers)
    ]
    before = model.configuration
    compensate(model, FEATURES[:1], [8, 3, 2, 16])
    for hook in hooks:
        hook.remove()
    assert model.configuration == before and not any(layer.observing for layer in model.layers)
    nearest = copy.deepcopy(model)
    nearest.set_quantizer(QuantizerArguments(rotation="hadamard", clipping="mse", grid="midrise"))
    for i, (layer, other) in enumerate(zip(model.layers, nearest.layers, strict=True)):
        assert layer.compensated.keys() == {"8", "3", "2"}
        weight, gram = layer.oriented_weight, layer.rotation.inverse(layer.rotation.inverse(seen[i].t() @ seen[i]).t())
        errors = [output_error(weight, which.read_back(2), gram).sum() for which in (layer, other)]
        assert errors[0] < 0.9 * errors[1]


@torch.no_grad()
def test_codes_do_not_depend_on_how_many_layers_are_observed_at_once(model, monkeypatch):
    model.set_quantizer(COMPENSATED)
    compensate(model, FEATURES[:3], [4])
    found = [layer.codes(4)[0].clone() for layer in model.layers]
    monkeypatch.setattr(calibration, "GRAM_BYTES", 1)
    compensate(model, FEATURES[:3], [4])
    assert all(torch.equal(layer.codes(4)[0], codes) for layer, codes in zip(model.layers, found, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"weights": "per_group", "group_size": 16}, {"nested": True}, {"learned_steps": True}])
def test_a_compensated_model_is_what_it_deploys_and_saves(model, changes, tmp_path):
    model.set_quantizer(QuantizerArguments(**{"rounding": "compensated", "rotation": "hadamard", "grid": "midrise"} | changes))
    model.add_adapters({8: LoraSpec(2, 4), 3: LoraSpec(2, 4)})
    compensate(model, FEATURES[:3], [8, 3])
    if changes.get("learned_steps"):
        model.learn_steps(["8", "3"])
        for layer in model.layers:
            layer.steps["3"].add_(0.1)
    model.save(tmp_path, TOKENIZER)
    loaded, _ = SwitchableModel.load(tmp_path)
    for spec in (8, 3, {"attn": 8, "mlp": 3}):
        with model.at(spec), loaded.at(spec):
            expected = model(IDS)
            for other in (loaded, copy.deepcopy(model), deploy(model, spec)):
                assert torch.equal(other(IDS).start, expected.start)


def test_codes_of_another_weight_are_never_used(model):
    model.set_quantizer(COMPENSATED)
    model.set_precision(4)
    with pytest.raises(RuntimeError, match="no compensated codes of 4 bits have been computed; `compensate` computes them"):
        model(IDS)
    compensate(model, FEATURES[:2], [4])
    model(IDS)
    model.unfreeze_base()
    with pytest.raises(RuntimeError, match="compensated codes are those of a frozen weight; train it with rounding 'nearest'"):
        model(IDS)
    model.freeze_base()
    with pytest.raises(RuntimeError, match="no compensated codes of 4 bits"):
        model(IDS)


def test_only_a_compensating_quantizer_is_compensated(model):
    with pytest.raises(ValueError, match="rounding is 'nearest'; allowed is one of 'compensated'"):
        compensate(model, FEATURES[:2], [4])


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_adapters_start_where_they_leave_the_least_output_error(model, rounding):
    model.set_quantizer(QuantizerArguments(rounding=rounding, rotation="hadamard"))
    model.add_adapters({32: LoraSpec(4, 8), 2: LoraSpec(4, 8), 8: LoraSpec(40, 8)})
    with model.at(32):
        before = model(IDS).start
    if rounding == "compensated":
        compensate(model, FEATURES[:2], [2, 8])
    grams = {id(layer): gram for layer, gram in calibration._grams(model, FEATURES[:2], None)}
    left = {}
    for started in (False, True):
        if started:
            start_adapters(model, FEATURES[:2])
        for layer in model.layers:
            weight, adapter = layer.rotation.apply(layer.oriented_weight.detach()), layer.own_adapter(2)
            other = layer.weight_quantizer.floats(layer.oriented_weight, 2) + adapter.scaling * adapter.lora_B @ adapter.lora_A
            left[started, id(layer)] = float(output_error(weight, other.detach(), grams[id(layer)]).sum())
    assert all(left[True, key] < 0.8 * left[False, key] for key in grams)
    with model.at(32):
        assert torch.equal(model(IDS).start, before)


def test_a_shared_adapter_keeps_its_start(model):
    model.add_adapters({SHARED: LoraSpec(4, 8)})
    start_adapters(model, FEATURES[:2])
    assert not any(layer.own_adapter(SHARED).lora_B.any() for layer in model.layers)
