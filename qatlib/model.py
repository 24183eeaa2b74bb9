"""A causal language model with switchable linear layers and a span head: switch, save, reload."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qatlib.arguments import QuantizerArguments
from qatlib.export import adapter_folder, load_adapter, read_spec, save_adapter
from qatlib.injection import check_groups, inject
from qatlib.layers import LoraSpec, SwitchableLinear
from qatlib.precision import FULL, Configuration, Precision
from qatlib.pretrained import ModelError, load_pretrained
from qatlib.switching import Switching

_OWN_FILE, _SWITCH_FILE = "switchable.safetensors", "switchable.json"

_OWN = re.compile(r"^qa_outputs\.|\.(clips|steps)\.")
"""The file with all that belongs neither to the base model nor to an adapter."""


class SwitchableModel(Switching[SwitchableLinear]):
    """A causal language model whose linear layers switch precision, with a head for answer spans.

    Attributes:
        lm: the injected language model; `lm`'s own forward gives next-token logits at the current precision.
        qa_outputs: linear head, (start, end) logits per token.
        infos: the switchable layers, in the model's order.

    Example:
        >>> lm, tokenizer = load_pretrained("hub:gpt2")
        >>> model = SwitchableModel(lm)  # at 32 bits: the outputs of `lm`, bit for bit
        >>> model.add_adapters({8: LoraSpec(8, 16), 4: LoraSpec(16, 32)})
        >>> model.set_precision({"attn": 8, "mlp": 4})
        >>> with model.at(4):
        ...     logits = model.lm(**tokenizer("Quantized", return_tensors="pt")).logits
    """

    def __init__(self, lm: PreTrainedModel, quantizer: QuantizerArguments | None = None) -> None:
        quantizer = quantizer or QuantizerArguments()
        injection = inject(lm, quantizer)
        super().__init__(lm, nn.Linear(injection.width, 2), injection.infos)
        self._blocks = injection.blocks
        self.quantizer = quantizer
        self.reset_head()
        self.lora: dict[int, LoraSpec] = {}
        self.freeze_base()

    def reset_head(self) -> None:
        """Initialise the span head again, at random."""
        nn.init.normal_(self.qa_outputs.weight, std=0.02)
        nn.init.zeros_(self.qa_outputs.bias)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in the order that `LayerInfo.block` numbers."""
        blocks = self.lm.get_submodule(self._blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @contextmanager
    def attending(self, implementation: str) -> Iterator[SwitchableModel]:
        """Use another attention implementation of transformers (`eager`, `sdpa`) inside a `with` block."""
        before = self.lm.config._attn_implementation
        self.lm.set_attn_implementation(implementation)
        try:
            yield self
        finally:
            self.lm.set_attn_implementation(before)

    def check_quantizer(self, quantizer: QuantizerArguments, key: str = "quantizer") -> None:
        """Check that this model's weights can be quantized this way.

        Args:
            key: name of the quantizer in an error.

        Raises:
            ModelError: the group size does not divide a layer's number of inputs.
        """
        for info, layer in zip(self.infos, self._layers, strict=True):
            check_groups(info.name, layer.in_features, quantizer, key)

    def set_quantizer(self, quantizer: QuantizerArguments) -> None:
        """Change the quantizer of every layer. Codes are computed again; learned scales and clips are deleted.

        Raises:
            ModelError: as `check_quantizer`.
        """
        self.check_quantizer(quantizer)
        self.quantizer = quantizer
        for layer in self._layers:
            layer.set_quantizer(quantizer)

    def add_adapters(self, specs: dict[int, LoraSpec]) -> None:
        """Put a fresh adapter into every layer for each weight bit-width, or for `layers.SHARED`. Old adapters are replaced."""
        self.lora = dict(specs)
        for layer in self._layers:
            layer.add_adapters(specs)

    def learn_steps(self, precisions: Sequence[Precision]) -> None:
        """Make the scales of these precisions parameters: one per weight group, and one per layer for its activations (LSQ)."""
        for layer in self._layers:
            layer.learn_steps(sorted({p.w_bits for p in precisions} - {FULL}), sorted({p.a_bits for p in precisions} - {FULL}))

    def adapter_parameters(self, w_bits: int) -> Iterator[nn.Parameter]:
        """The weights of one bit-width's adapters in all layers."""
        for layer in self._layers:
            yield from layer.adapters[str(w_bits)].parameters()

    def merge_adapter(self) -> None:
        """Add the full-precision adapter to the base weights and drop all adapters.

        Raises:
            ValueError: the model has no adapter at full precision.
        """
        if FULL not in self.lora:
            raise ValueError(f"there is no adapter at {FULL} bits to merge; there is one at {sorted(self.lora) or 'no'} bits")
        for layer in self._layers:
            layer.merge_adapter(FULL)
        self.add_adapters({})

    def freeze_base(self) -> None:
        """Train adapters and the span head only."""
        self._base_requires_grad(False)

    def unfreeze_base(self) -> None:
        """Train all weights."""
        self._base_requires_grad(True)

    def _base_requires_grad(self, value: bool) -> None:
        for name, parameter in self.lm.named_parameters():
            if ".adapters." not in name:
                parameter.requires_grad_(value)
        for layer in self._layers:
            layer.weight_quantizer.forget()

    def base_state(self, spec: Any = FULL) -> dict[str, Tensor]:
        """The language model's own weights by name, without adapters, in the form that a plain model of its class loads.

        Args:
            spec: as `Configuration.resolve`. The weight of a quantized layer is its dequantized weight at `w_bits`.
        """
        configuration = Configuration.resolve(spec, self.infos)
        inside = tuple(f"{info.name}." for info in self.infos)
        state = {name: value for name, value in self.lm.state_dict().items() if not name.startswith(inside)}
        for info, layer in zip(self.infos, self._layers, strict=True):
            weight = layer.weight.detach()
            if (w_bits := configuration[info.name].w_bits) != FULL:
                weight = layer.read_back(w_bits).t() if layer.fan_in_fan_out else layer.read_back(w_bits)
            state[f"{info.name}.weight"] = weight
            if layer.bias is not None:
                state[f"{info.name}.bias"] = layer.bias.detach()
        return state

    def save(self, path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a directory: the base model as `from_pretrained` reads it, adapters as PEFT does, and the span head.

        Files: `config.json`, `generation_config.json`, `model.safetensors` and the tokenizer; `adapters/w4` and so on, one
        folder per bit-width; `switchable.safetensors` with the span head, clips and learned steps; `switchable.json` with
        all other settings.
        """
        path.mkdir(parents=True, exist_ok=True)
        if (path / "adapters").exists():  # PEFT would take an adapter of an earlier save for one of this model
            shutil.rmtree(path / "adapters")
        # not by the model's save_pretrained, which refuses models read from a GGUF file
        self.lm.config.architectures = [type(self.lm).__name__]
        self.lm.config.save_pretrained(path)
        self.lm.generation_config.save_pretrained(path)
        tokenizer.save_pretrained(path)
        stored: dict[int, str] = {}  # tied weights are saved once, under their first name: `from_pretrained` ties them again
        state = self.base_state()
        state = {name: value.contiguous() for name, value in state.items() if stored.setdefault(value.data_ptr(), name) == name}
        save_file(state, path / "model.safetensors", {"format": "pt"})
        for w_bits, spec in self.lora.items():
            save_adapter(adapter_folder(path, w_bits), self._by_name, w_bits, spec)
        save_file({name: value for name, value in self.state_dict().items() if _OWN.search(name)}, path / _OWN_FILE)
        about = {"quantizer": asdict(self.quantizer), "adapters": list(self.lora)}
        (path / _SWITCH_FILE).write_text(json.dumps(about, indent=1))

    @property
    def _by_name(self) -> dict[str, SwitchableLinear]:
        return {info.name: layer for info, layer in zip(self.infos, self._layers, strict=True)}

    @classmethod
    def load(cls, path: Path) -> tuple[SwitchableModel, PreTrainedTokenizerBase]:
        """Read back what `save` wrote.

        Raises:
            ModelError: the directory was not written by `save`, or is incomplete.
            ValueError: an adapter belongs to another model.
        """
        lm, tokenizer = load_pretrained(f"dir:{path}")
        for name in (_OWN_FILE, _SWITCH_FILE):
            if not (path / name).is_file():
                raise ModelError(f"{path}: no {name} in it, so no switchable model was saved here")
        about = json.loads((path / _SWITCH_FILE).read_text())
        folders = {w_bits: adapter_folder(path, w_bits) for w_bits in about["adapters"]}
        for folder in folders.values():
            if not folder.is_dir():
                raise ModelError(f"{folder}: no such directory, though {_SWITCH_FILE} beside it lists that adapter")
        model = cls(lm, QuantizerArguments(**about["quantizer"]))
        model.add_adapters({w_bits: read_spec(folder) for w_bits, folder in folders.items()})
        for w_bits, folder in folders.items():
            load_adapter(folder, model._by_name, w_bits)
        own = load_file(path / _OWN_FILE)
        for name, value in own.items():
            if learned := re.fullmatch(r"lm\.(.+)\.(clips|steps)\.(\d+)", name):
                layer_name, kind, bits = learned.groups()
                getattr(model._by_name[layer_name], kind)[bits] = nn.Parameter(torch.empty_like(value), requires_grad=False)
        missing, unexpected = model.load_state_dict(own, strict=False)
        if unexpected or any(_OWN.search(name) for name in missing):
            raise ModelError(f"{path / _OWN_FILE}: does not fit the model beside it")
        return model, tokenizer
