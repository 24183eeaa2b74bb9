"""What a switchable model saves beside base and adapters: span head, clips, learned steps, static scales, compensated codes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qatlib.grids import code_dtype
from qatlib.layers import SwitchableLinear
from qatlib.precision import BIT_WIDTHS, FULL
from qatlib.quantizer import EMAObserver
from qatlib.saving import ModelError, check_tensors, read_tensors, save_file

_REST = re.compile(r"^qa_outputs\.|\.(clips|steps|compensated)\.")
_OF_LAYER = re.compile(r"lm\.(.+)\.(?:(clips|steps|compensated)\.([1-9]\d?)|input_absmax)")


def save_rest(path: Path, model: nn.Module, layers: Mapping[str, SwitchableLinear]) -> None:
    """Write the file.

    Args:
        layers: the model's switchable layers, by their module name in the language model.
    """
    tensors = _parameters(model)
    for name, layer in layers.items():
        if isinstance(layer.observer, EMAObserver) and layer.observer.absmax is not None:
            tensors[_static(name)] = layer.observer.absmax
    save_file(tensors, path)


def load_rest(path: Path, model: nn.Module, layers: Mapping[str, SwitchableLinear]) -> None:
    """Read the file into a model without clips and learned steps. They are trained only after `learn_steps`.

    Raises:
        ModelError: the file is missing, damaged, or of another model.
    """
    tensors = read_tensors(path)
    for layer_name, kind, bits in (match.groups() for name in tensors if (match := _OF_LAYER.fullmatch(name))):
        if layer_name not in layers or (bits and int(bits) not in {*BIT_WIDTHS} - {FULL}):
            raise ModelError(
                f"{path}: does not fit the model beside it, which has no {kind or 'scale'} {bits or ''} of {layer_name}"
            )
        layer = layers[layer_name]
        if kind == "compensated":
            layer.give_codes({int(bits): torch.empty(layer.out_features, layer.in_features, dtype=code_dtype(int(bits)))})
        elif bits:
            layer.learn_steps(*(([int(bits)], ()) if kind == "steps" else ((), [int(bits)])))
            getattr(layer, kind)[bits].requires_grad_(False)
    scales = tensors.keys() & map(_static, layers)
    check_tensors(path, tensors, _parameters(model) | dict.fromkeys(scales, torch.empty(())))
    for name, layer in layers.items():
        if _static(name) in scales:
            layer.observer = EMAObserver(absmax=tensors.pop(_static(name)))
    model.load_state_dict(tensors, strict=False)


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if _REST.search(name)}


def _static(layer_name: str) -> str:
    return f"lm.{layer_name}.input_absmax"
