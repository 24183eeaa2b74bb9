"""Adapters in PEFT's own format, one folder per bit-width, written and read without PEFT."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qatlib.files import swapped_in
from qatlib.layers import SwitchableLinear
from qatlib.lora import SHARED, LoraSpec
from qatlib.saving import ModelError, check_tensors, read_json, read_tensors, save_file

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (_CONFIG, _WEIGHTS)
"""The files of an adapter's folder."""
_PREFIX = "base_model.model."

_HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out",
    # which layers: the tensors must be those of the model's layers, whatever says so
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    # how an adapter starts, if that leaves the base as it is, and options of what is not used
    "init_lora_weights", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "qalora_group_size", "megatron_core",
    "runtime_config", "ensure_weight_tying",
}  # fmt: skip
"""The settings of PEFT that do not change what an adapter with given tensors computes, or that are read here.

All others must be empty: DoRA, biases, patterns of ranks, modules that are saved whole, and what later versions add.
"""
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
"""PEFT's ways to start an adapter that do not change the base weights; pissa, olora, loftq and others do."""


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
    with swapped_in(folder, _CONFIG) as new:
        (new / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        tensors = {key: value for name, layer in layers.items() for key, value in _to_peft(name, layer, w_bits).items()}
        save_file(tensors, new / _WEIGHTS, {"format": "pt"})


def read_spec(folder: Path) -> LoraSpec:
    """Rank, alpha and dropout of a saved adapter. rsLoRA's alpha / √rank is read as the alpha that gives the same scale.

    Raises:
        ModelError: a file is missing or damaged; the adapter is no LoRA, or computes something else than `layers.Lora`.
    """
    path = Path(folder) / _CONFIG
    config = read_json(path, dict[str, Any])
    for key in ("peft_type", "r", "lora_alpha", "lora_dropout"):
        if key not in config:
            raise ModelError(f"{path}: {key} is missing")
    if config["peft_type"] != "LORA":
        raise ModelError(f"{path}: peft_type is {config['peft_type']!r}; allowed is 'LORA'")
    if other := [key for key, value in config.items() if key not in _HARMLESS and value and (key, value) != ("bias", "none")]:
        raise ModelError(f"{path}: {other[0]} is {config[other[0]]!r:.80}, which is not supported; allowed is a plain LoRA")
    if (initial := config.get("init_lora_weights")) not in _INITIAL:
        raise ModelError(f"{path}: init_lora_weights is {initial!r}, which changes the base; save it converted to a plain LoRA")
    try:
        spec = LoraSpec(config["r"], config["lora_alpha"], config["lora_dropout"])
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    if config.get("use_rslora"):
        spec = LoraSpec(spec.rank, spec.alpha * math.sqrt(spec.rank), spec.dropout)
    return spec


@torch.no_grad()
def load_adapter(folder: Path, layers: Mapping[str, SwitchableLinear], w_bits: int) -> None:
    """Read a saved adapter into the layers' adapters of that bit-width, which have its rank and alpha.

    Raises:
        ModelError: as `read_spec`; the file has another model's layers, another rank or another scale; nothing is read then.
        ValueError: the layers have no adapter of that bit-width.
    """
    path, spec = Path(folder) / _WEIGHTS, read_spec(folder)
    tensors = read_tensors(path)
    mine = {key: value for name, layer in layers.items() for key, value in _to_peft(name, layer, w_bits).items()}
    if mine.keys() < tensors.keys():
        raise ModelError(f"{path}: holds {len(tensors)} tensors, the model's {len(layers)} layers have two each")
    check_tensors(path, tensors, mine, "the model")
    scale = spec.alpha / spec.rank
    for name, layer in layers.items():
        if not math.isclose(own := layer.own_adapter(w_bits).scaling, scale):
            raise ModelError(f"{path.with_name(_CONFIG)}: scales by {scale:g}, and the adapter of {name} by {own:g}")
    for name, layer in layers.items():
        _from_peft(name, layer, w_bits, tensors)


# PEFT's A gets the layer's original input. Adapters with a rotated input are therefore rotated back when saved, and rotated
# again when read. Only the two functions below do this.


def _to_peft(name: str, layer: SwitchableLinear, w_bits: int) -> dict[str, Tensor]:
    """A (rank, in) and B (out, rank) of one adapter under PEFT's names."""
    lora = layer.own_adapter(w_bits)
    parts = {"lora_A": layer.rotation.inverse(lora.lora_A), "lora_B": lora.lora_B}
    return {f"{_PREFIX}{name}.{part}.weight": value.detach().contiguous() for part, value in parts.items()}


def _from_peft(name: str, layer: SwitchableLinear, w_bits: int, tensors: Mapping[str, Tensor]) -> None:
    lora, a = layer.own_adapter(w_bits), tensors[f"{_PREFIX}{name}.lora_A.weight"]
    lora.lora_A.copy_(layer.rotation.apply(a))
    lora.lora_B.copy_(tensors[f"{_PREFIX}{name}.lora_B.weight"])
