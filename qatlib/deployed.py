"""A model that stores and multiplies integers, at one configuration or at several widths."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from qatlib.arguments import QuantizerArguments
from qatlib.grids import codes_of
from qatlib.integer import IntegerLinear
from qatlib.model import SwitchableModel
from qatlib.packing import pack, unpack
from qatlib.precision import FULL, Configuration, LayerInfo, Precision
from qatlib.pretrained import ModelError
from qatlib.switching import Switching
from qatlib.weights import NESTED_IN

_TIED = "lm.lm_head.weight"
_WEIGHTS_FILE, _REST_FILE, _ABOUT_FILE = "weights.safetensors", "rest.safetensors", "deployed.json"


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
        """Write a directory: `weights.safetensors` with packed codes and their scales, and other files for the rest."""
        path.mkdir(parents=True, exist_ok=True)
        self.lm.config.save_pretrained(path)
        tokenizer.save_pretrained(path)
        weights: dict[str, Tensor] = {}
        rest = self.state_dict()
        if self.lm.config.tie_word_embeddings:
            rest.pop(_TIED, None)
        about = []
        for info, layer in zip(self.infos, self._layers, strict=True):
            for key, value in layer.stored().items():
                (weights if key.startswith(("codes", "scale")) else rest)[f"{info.name}.{key}"] = value
            codes = weights[f"{info.name}.codes"]
            odd = False
            if layer.bits != FULL:
                grid = codes_of(layer.bits, layer.quantizer.grid)
                odd, weights[f"{info.name}.codes"] = grid.odd, pack(grid.ranks(codes), layer.bits)
            stored = {"bits": layer.bits, "odd": odd, "shape": list(codes.shape)}
            about.append({"info": asdict(info), "precision": layer.precision.name, **stored})
        save_file({name: value.contiguous() for name, value in weights.items()}, path / _WEIGHTS_FILE)
        save_file({name: value.contiguous() for name, value in rest.items()}, path / _REST_FILE)
        quantizer = asdict(self._layers[0].quantizer)
        (path / _ABOUT_FILE).write_text(json.dumps({"quantizer": quantizer, "layers": about}, indent=1))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> tuple[DeployedModel, PreTrainedTokenizerBase]:
        """Read back what `save` wrote.

        Raises:
            ModelError: the directory was not written by `save`, or is incomplete.
        """
        for name in (_WEIGHTS_FILE, _REST_FILE, _ABOUT_FILE):
            if not (path / name).is_file():
                raise ModelError(f"{path}: no {name} in it, so no deployed model was saved here")
        about = json.loads((path / _ABOUT_FILE).read_text())
        tensors = load_file(path / _WEIGHTS_FILE, str(device)) | load_file(path / _REST_FILE, str(device))
        lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)).to(device)
        quantizer = QuantizerArguments(**about["quantizer"])
        for layer in about["layers"]:
            start = layer["info"]["name"] + "."
            own = {name.removeprefix(start): tensors.pop(name) for name in list(tensors) if name.startswith(start)}
            if layer["bits"] != FULL:
                ranks = unpack(own["codes"], layer["bits"], tuple(layer["shape"]))
                # keep the saved form: earlier versions packed odd codes unchanged if they fitted
                own["codes"] = codes_of(layer["bits"], quantizer.grid).of_ranks(ranks) if layer["odd"] else ranks
            lm.set_submodule(layer["info"]["name"], IntegerLinear.restore(own, layer["bits"], quantizer))
        model = cls(lm, nn.Linear(lm.config.hidden_size, 2), [LayerInfo(**layer["info"]) for layer in about["layers"]])
        missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
        lm.tie_weights()
        absent = [name for name in missing if name != _TIED or not lm.config.tie_word_embeddings]
        if absent or unexpected:
            raise ModelError(f"{path / _REST_FILE}: does not fit the model beside it ({(absent or unexpected)[0]})")
        model.set_precision(
            Configuration({layer["info"]["name"]: Precision.parse(layer["precision"]) for layer in about["layers"]})
        )
        return model.requires_grad_(False), AutoTokenizer.from_pretrained(path)

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
        ValueError: 32 among the weight widths; several widths of a model whose quantizer is not `nested`, or whose widest are
            not 8 bits, so that its narrower codes are others; a width that has no adapter while others have one.
    """
    parsed = [Precision.parse(p) for p in precisions]
    widths = sorted({p.w_bits for p in parsed})
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
