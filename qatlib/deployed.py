"""A model that stores and multiplies integers, at one configuration or at several widths."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from qatlib.arguments import QuantizerArguments
from qatlib.files import swapped_in
from qatlib.grids import codes_of
from qatlib.integer import IntegerLinear
from qatlib.model import SwitchableModel
from qatlib.packing import pack, unpack
from qatlib.precision import FULL, Configuration, LayerInfo, Precision
from qatlib.pretrained import check_directory, load_tokenizer, one_sentence
from qatlib.saving import (
    check_files,
    check_tensors,
    check_tokenizer,
    read_json,
    read_tensors,
    save_file,
    save_surroundings,
    ties,
    untied,
)
from qatlib.switching import Switching
from qatlib.weights import NESTED_IN

_GENERATION_FILE = "generation_config.json"
_WEIGHTS_FILE, _REST_FILE, _ABOUT_FILE = "weights.safetensors", "rest.safetensors", "deployed.json"
_HEAD = "qa_outputs.weight"


@dataclass
class _Layer:
    """What `deployed.json` holds of a layer: its precision, and the width, form and shape of its packed codes."""

    info: LayerInfo
    precision: str
    bits: int
    odd: bool
    shape: tuple[int, int]

    def codes(self, own: Mapping[str, Tensor], quantizer: QuantizerArguments, replaced: nn.Module) -> Tensor:
        """The codes (out, in), or the weights at 32 bits.

        Args:
            own: what is stored of this layer.
            replaced: the layer in whose place it comes.

        Raises:
            ValueError: there are no codes, or other ones than the replaced layer needs.
        """
        weight = getattr(replaced, "weight", None)
        if weight is None or self.shape != tuple(weight.shape)[:: -1 if isinstance(replaced, Conv1D) else 1]:
            raise ValueError(f"codes of shape {self.shape} do not fit the config's model")
        if "codes" not in own or (own["codes"].dtype == torch.uint8) == (self.bits == FULL):
            raise ValueError(f"no codes of {self.bits} bits are stored")
        if self.bits == FULL:
            return own["codes"]
        ranks = unpack(own["codes"], self.bits, self.shape)
        # keep the saved form: earlier versions packed odd codes unchanged if they fitted
        return codes_of(self.bits, quantizer.grid).of_ranks(ranks) if self.odd else ranks


@dataclass
class _Saved:
    """What `deployed.json` holds."""

    quantizer: QuantizerArguments
    layers: list[_Layer]


class DeployedModel(Switching[IntegerLinear]):
    """A causal language model with `IntegerLinear` layers and the span head. It gives the answers of the model it was made from.

    It switches between the weight widths that were deployed. Codes of a derived width are computed at their first use.

    Example:
        >>> deploy(model, 4).save(Path("mine"), tokenizer)
        >>> deployed, tokenizer = DeployedModel.load(Path("mine"))
        >>> deployed.set_precision("w4a8")  # only the activations change: only 4-bit codes were saved
        >>> output = deployed(batch.input_ids)
    """

    def __init__(self, lm: PreTrainedModel, qa_outputs: nn.Linear, infos: Sequence[LayerInfo]) -> None:
        super().__init__(lm, qa_outputs, infos)
        self.requires_grad_(False).eval()

    def _check(self, configuration: Configuration) -> None:
        """Raise an error if a weight width was not deployed."""
        for (name, precision), layer in zip(configuration.items(), self._layers, strict=True):
            if not layer.has(precision.w_bits):
                have = ", ".join(map(str, layer.scales or [FULL]))
                raise ValueError(f"{name} was not deployed with {precision.w_bits}-bit weights, only with {have} bits")

    def save(self, path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a directory: `weights.safetensors` with packed codes and their scales, and other files for the rest.

        All files take their places at the end, or none: after an error the directory is as it was. Other files there are kept.

        Raises:
            OSError: a file cannot be written.
            ValueError: `tokenizer` is no tokenizer.
        """
        check_tokenizer(tokenizer)
        weights: dict[str, Tensor] = {}
        rest = {f"lm.{name}": value for name, value in untied(self.lm, self.lm.state_dict()).items()}
        rest |= {f"qa_outputs.{name}": value for name, value in self.qa_outputs.state_dict().items()}
        about = []
        for info, layer in zip(self.infos, self._layers, strict=True):
            for key, value in layer.stored().items():
                (weights if key.startswith(("codes", "scale")) else rest)[f"{info.name}.{key}"] = value
            codes = weights[f"{info.name}.codes"]
            odd = False
            if layer.bits != FULL:
                grid = codes_of(layer.bits, layer.quantizer.grid)
                odd, weights[f"{info.name}.codes"] = grid.odd, pack(grid.ranks(codes), layer.bits)
            about.append(asdict(_Layer(info, layer.precision.name, layer.bits, odd, (codes.shape[0], codes.shape[1]))))
        with swapped_in(Path(path), _ABOUT_FILE) as new:
            save_surroundings(new, self.lm, tokenizer)
            save_file(weights, new / _WEIGHTS_FILE)
            save_file(rest, new / _REST_FILE)
            quantizer = asdict(self._layers[0].quantizer)
            (new / _ABOUT_FILE).write_text(json.dumps({"quantizer": quantizer, "layers": about}, indent=1))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> tuple[DeployedModel, PreTrainedTokenizerBase]:
        """Read back what `save` wrote, in eval mode and at the precision it was saved at.

        Raises:
            ModelError: the directory was not written by `save`, or a file of it is missing, damaged or of another model.
        """
        path = Path(path)
        check_files(path, (_WEIGHTS_FILE, _REST_FILE, _ABOUT_FILE), "deployed model")
        check_directory(path, weights=False)
        saved = read_json(path / _ABOUT_FILE, _Saved, "quantizer")
        weights, rest = (read_tensors(path / name, str(device)) for name in (_WEIGHTS_FILE, _REST_FILE))
        with one_sentence(str(path / "config.json")):
            lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)).to(device)
        if (path / _GENERATION_FILE).is_file():
            with one_sentence(str(path / _GENERATION_FILE)):
                lm.generation_config = GenerationConfig.from_pretrained(path)
        for layer in saved.layers:
            name = layer.info.name
            own = _taken(weights, f"{name}.") | _taken(rest, f"{name}.")
            with one_sentence(f"{path}: layer {name}"):
                own["codes"] = layer.codes(own, saved.quantizer, lm.get_submodule(name))
                lm.set_submodule(name, IntegerLinear.restore(own, layer.bits, saved.quantizer))
        check_tensors(path / _WEIGHTS_FILE, weights, {})
        width = rest[_HEAD].shape[-1] if _HEAD in rest else 1  # of an OPT with a projection, not the blocks' width
        model = cls(lm, nn.Linear(width, 2), [layer.info for layer in saved.layers])
        for name, source in ties(lm).items():
            if f"lm.{name}" not in rest and f"lm.{source}" in rest:
                rest[f"lm.{name}"] = rest[f"lm.{source}"] = nn.Parameter(rest[f"lm.{source}"], requires_grad=False)
        check_tensors(path / _REST_FILE, rest, model.state_dict())
        model.load_state_dict(rest, assign=True)
        with one_sentence(str(path / _ABOUT_FILE)):
            model.set_precision(Configuration({layer.info.name: Precision.parse(layer.precision) for layer in saved.layers}))
        return model.requires_grad_(False), load_tokenizer(path, str(path))

    def memory(self) -> dict[str, int]:
        """`IntegerLinear.memory`, summed over the layers."""
        each = [layer.memory() for layer in self._layers]
        return {key: sum(memory[key] for memory in each) for key in each[0]}


@torch.no_grad()
def deploy(model: SwitchableModel, spec: Any) -> DeployedModel:
    """One configuration of a model, with integer storage and integer kernels. The model itself does not change.

    Args:
        spec: anything `Configuration.resolve` reads; a mapping changes the model's present configuration.

    Raises:
        ValueError: as `Configuration.resolve`; or a width has no adapter while others have one.

    Example:
        >>> deployed = deploy(model, {"attn": 8, "mlp": 4})
        >>> with model.at({"attn": 8, "mlp": 4}):
        ...     simulated = model(batch.input_ids).start
        >>> torch.allclose(deployed(batch.input_ids).start, simulated, atol=1e-4)
        True
    """
    configuration = Configuration.resolve(spec, model.infos, model.configuration)
    deployed = _with_layers(model, {name: [p.w_bits] for name, p in configuration.items()})
    deployed.set_precision(configuration)
    return deployed


@torch.no_grad()
def deploy_nested(model: SwitchableModel, precisions: Sequence[Any]) -> DeployedModel:
    """Several widths of a model, stored as its 8-bit codes only. The first of `precisions` is active. Answers are the model's.

    Raises:
        ValueError: no precision; 32 among the weight widths; several widths of a model whose quantizer is not `nested`, or whose
            widest are not 8 bits, so that its narrower codes are others; a width that has no adapter while others have one.
    """
    parsed = [Precision.parse(p) for p in precisions]
    widths = sorted({p.w_bits for p in parsed})
    if not widths:
        raise ValueError("no precision is given to deploy: allowed are one or more")
    if FULL in widths:
        raise ValueError(f"no codes hold {FULL}-bit weights: deploy widths of 2 to 16 bits, or {FULL} alone")
    if len(widths) > 1 and not (model.quantizer.nested and max(widths) == NESTED_IN):
        raise ValueError(
            f"weights of {', '.join(map(str, widths))} bits: codes of several widths are one store only under quantizer.nested "
            f"and with {NESTED_IN} bits as the widest"
        )
    deployed = _with_layers(model, {info.name: widths for info in model.infos})
    deployed.set_precision(parsed[0])
    return deployed


def _with_layers(model: SwitchableModel, widths: Mapping[str, Sequence[int]]) -> DeployedModel:
    # deepcopy does not copy what it finds in the memo, so the layers' float weights are never in memory twice.
    layers = zip(model.infos, model.layers, strict=True)
    memo: dict[int, Any] = {id(layer): IntegerLinear.of(layer, widths[info.name]) for info, layer in layers}
    return DeployedModel(copy.deepcopy(model.lm, memo), copy.deepcopy(model.qa_outputs), model.infos)


def _taken(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors whose names start so, without that start. They are taken out."""
    return {name.removeprefix(start): tensors.pop(name) for name in [*tensors] if name.startswith(start)}
