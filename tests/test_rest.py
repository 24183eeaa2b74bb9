"""What no other file holds comes back as it was."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from qatlib.arguments import QuantizerArguments
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.pretrained import ModelError
from qatlib.qa.evaluate import set_static_range
from qatlib.rest import load_rest, save_rest


@pytest.fixture
def make(tiny_lm):
    def make() -> SwitchableModel:
        return SwitchableModel(tiny_lm(), QuantizerArguments(activations="per_tensor_static", learned_steps=True))

    return make


def layers(model: SwitchableModel):
    return {info.name: layer for info, layer in zip(model.infos, model.layers, strict=True)}


def test_head_clips_steps_and_static_scales_come_back(make, tmp_path, tokens):
    model, again = make().eval(), make().eval()
    model.learn_steps([Precision(4, 8)])
    for layer in model.layers:
        torch.nn.init.normal_(layer.steps["4"], std=0.1)
    set_static_range(model, 3.0)
    save_rest(tmp_path / "rest", model, layers(model))
    load_rest(tmp_path / "rest", again, layers(again))
    with torch.no_grad(), model.at("w4a8"), again.at("w4a8"):
        assert torch.equal(model(tokens).start, again(tokens).start)
    assert not any(p.requires_grad for layer in again.layers for p in [*layer.steps.values(), *layer.clips.values()])


def test_without_a_calibration_there_are_no_static_scales(make, tmp_path, tokens):
    model, again = make(), make()
    save_rest(tmp_path / "rest", model, layers(model))
    load_rest(tmp_path / "rest", again, layers(again))
    with torch.no_grad(), again.eval().at(8), pytest.raises(RuntimeError, match="need a calibration pass"):
        again(tokens)


FIRST = "lm.transformer.h.0.attn.c_attn"


@pytest.mark.parametrize(
    "changed",
    [
        {f"{FIRST}.steps.4": torch.zeros(3)},
        {f"{FIRST}.steps.99": torch.zeros(96, 1)},
        {f"{FIRST}.steps.04": torch.zeros(96, 1)},
        {f"{FIRST}.clips.8": torch.zeros(2)},
        {f"{FIRST}.clips.32": torch.zeros(())},
        {f"{FIRST}.input_absmax": torch.zeros(1)},
        {f"{FIRST}.input_absmax": torch.zeros((), dtype=torch.int64)},
        {"lm.transformer.h.9.attn.c_attn.steps.4": torch.zeros(96, 1)},
        {"qa_outputs.weight": torch.zeros(2, 31)},
        {"other": torch.zeros(1)},
    ],
    ids=str,
)
def test_tensors_of_another_model_are_refused(changed, make, tmp_path):
    model = make()
    save_rest(tmp_path / "rest", model, layers(model))
    save_file(load_file(tmp_path / "rest") | changed, tmp_path / "rest")
    with pytest.raises(ModelError, match="rest: .*the model beside it") as caught:
        load_rest(tmp_path / "rest", model, layers(model))
    assert len(str(caught.value).splitlines()) == 1
