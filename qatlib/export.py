"""Adapters in PEFT's own format, one folder per bit-width, written and read without PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qatlib.layers import SHARED, Lora, LoraSpec, SwitchableLinear

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def adapter_folder(path: Path, w_bits: int) -> Path:
    """The folder of a saved adapter: `adapters/w4` for a weight bit-width, `adapters/shared` for the shared one."""
    return path / "adapters" / ("shared" if w_bits == SHARED else f"w{w_bits}")


def save_adapter(folder: Path, layers: Mapping[str, SwitchableLinear], w_bits: int, spec: LoraSpec) -> None:
    """Write one bit-width's adapter of every layer: `PeftModel.from_pretrained(base, folder)` reads it.

    On the saved base, PEFT gives the outputs of the 32-bit adapter. A narrower adapter was trained on quantized weights: load
    `SwitchableModel.base_state(w_bits)` into the base first. PEFT has no activation quantizer.

    Args:
        layers: by their module name in the language model.
        spec: the `LoraSpec` with which the adapters were added.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,  # its own directory, even after a move
        "inference_mode": True,
        "target_modules": list(layers),  # full names: PEFT would match a short name with the end of any name
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "fan_in_fan_out": next(iter(layers.values())).fan_in_fan_out,
        "bias": "none",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    tensors = {key: value for name, layer in layers.items() for key, value in _to_peft(name, layer, w_bits).items()}
    save_file(tensors, folder / _WEIGHTS, {"format": "pt"})


def read_spec(folder: Path) -> LoraSpec:
    """Rank, alpha and dropout of a saved adapter."""
    config = json.loads((folder / _CONFIG).read_text())
    return LoraSpec(config["r"], config["lora_alpha"], config["lora_dropout"])


@torch.no_grad()
def load_adapter(folder: Path, layers: Mapping[str, SwitchableLinear], w_bits: int) -> None:
    """Read a saved adapter into the layers' adapters of that bit-width.

    Raises:
        ValueError: the file has another model's layers, or another rank.
    """
    tensors = load_file(folder / _WEIGHTS)
    for name, layer in layers.items():
        for key, mine in _to_peft(name, layer, w_bits).items():
            if key not in tensors or tensors[key].shape != mine.shape:
                raise ValueError(f"{folder / _WEIGHTS}: does not fit the model, which has {key} of shape {tuple(mine.shape)}")
        _from_peft(name, layer, w_bits, tensors)
    if len(tensors) != 2 * len(layers):
        raise ValueError(f"{folder / _WEIGHTS}: holds {len(tensors)} tensors, the model's {len(layers)} layers have two each")


def _lora(layer: SwitchableLinear, w_bits: int) -> Lora:
    adapter = layer.adapters[str(w_bits)]
    assert isinstance(adapter, Lora)
    return adapter


# PEFT's A gets the layer's original input. Adapters with a rotated input are therefore rotated back when saved, and rotated
# again when read. Only the two functions below do this.


def _to_peft(name: str, layer: SwitchableLinear, w_bits: int) -> dict[str, Tensor]:
    """A (rank, in) and B (out, rank) of one adapter under PEFT's names."""
    lora = _lora(layer, w_bits)
    parts = {"lora_A": layer.rotation.inverse(lora.lora_A), "lora_B": lora.lora_B}
    return {f"{_PREFIX}{name}.{part}.weight": value.detach().contiguous() for part, value in parts.items()}


def _from_peft(name: str, layer: SwitchableLinear, w_bits: int, tensors: Mapping[str, Tensor]) -> None:
    lora, a = _lora(layer, w_bits), tensors[f"{_PREFIX}{name}.lora_A.weight"]
    lora.lora_A.copy_(layer.rotation.apply(a))
    lora.lora_B.copy_(tensors[f"{_PREFIX}{name}.lora_B.weight"])
