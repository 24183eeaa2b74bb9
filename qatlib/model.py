"""A causal language model with switchable linear layers and a span head: switch, save, reload."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qatlib.arguments import QuantizerArguments
from qatlib.export import ADAPTER_FILES, adapter_folder, load_adapter, read_spec, save_adapter
from qatlib.files import swapped_in
from qatlib.injection import check_groups, inject
from qatlib.layers import SwitchableLinear
from qatlib.lora import LoraSpec, check_adapters
from qatlib.precision import FULL, Configuration, Precision
from qatlib.pretrained import ModelError, load_pretrained
from qatlib.rest import load_rest, save_rest
from qatlib.saving import check_files, check_tokenizer, read_json, save_file, save_surroundings, tensor_types, untied
from qatlib.switching import Switching

_BASE_FILE, _OWN_FILE, _SWITCH_FILE = "model.safetensors", "switchable.safetensors", "switchable.json"


@dataclass
class _Saved:
    """What `switchable.json` holds."""

    quantizer: QuantizerArguments
    adapters: list[int]
    configuration: dict[str, str] = field(default_factory=dict)


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
        self.qa_outputs.train(lm.training)
        self.training = lm.training
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
        """Put a fresh adapter into every layer for each weight bit-width, or for `layers.SHARED`. Old adapters are replaced.

        Raises:
            ValueError: a key is no bit-width, or a value no `LoraSpec`; no adapter is changed then.
        """
        check_adapters(specs)
        for layer in self._layers:
            layer.add_adapters(specs)
        self.lora = dict(specs)

    def learn_steps(self, precisions: Sequence[Precision]) -> None:
        """Make the scales of these precisions parameters: one per weight group, and one per layer for its activations (LSQ).

        Raises:
            ValueError: as `Precision.parse`, which reads each of them.
        """
        parsed = [Precision.parse(p) for p in precisions]
        for layer in self._layers:
            layer.learn_steps(sorted({p.w_bits for p in parsed} - {FULL}), sorted({p.a_bits for p in parsed} - {FULL}))

    def adapter_parameters(self, w_bits: int) -> Iterator[nn.Parameter]:
        """The weights of one bit-width's adapters in all layers.

        Raises:
            ValueError: there are no adapters of that bit-width.
        """
        return chain.from_iterable([layer.own_adapter(w_bits).parameters() for layer in self._layers])

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

    def unfreeze_base(self, held: Sequence[Precision] = ()) -> None:
        """Train all weights.

        Args:
            held: precisions at which weights keep the clipping that `mse` finds now, as `WeightQuantizer.hold` does, until the
                base is frozen. At others every pass searches it anew.
        """
        self._base_requires_grad(True)
        for layer in self._layers:
            for w_bits in sorted({p.w_bits for p in held} - {FULL}):
                layer.weight_quantizer.hold(layer.oriented_weight, w_bits)

    def _base_requires_grad(self, value: bool) -> None:
        for name, parameter in self.lm.named_parameters():
            if ".adapters." not in name and parameter.is_floating_point():
                parameter.requires_grad_(value)
        for layer in self._layers:
            if value:
                layer.compensated.clear()  # training changes the weight that these codes are of
            layer.weight_quantizer.forget()
            layer.weight_quantizer.release()

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
        folder per bit-width; `switchable.safetensors` with the span head, clips, learned steps and calibrated static scales;
        `switchable.json` with all other settings. All files take their places at the end, or none: after an error the directory
        is as it was. Of the files there, only those of an earlier `save` are replaced or removed.

        Raises:
            OSError: a file cannot be written.
            ValueError: `tokenizer` is no tokenizer.
        """
        check_tokenizer(tokenizer)
        path = Path(path)
        with swapped_in(path, _SWITCH_FILE, _adapter_files(path)) as new:
            save_surroundings(new, self.lm, tokenizer)
            save_file(untied(self.lm, self.base_state()), new / _BASE_FILE, {"format": "pt"})
            for w_bits, spec in self.lora.items():
                save_adapter(adapter_folder(new, w_bits), self._by_name, w_bits, spec)
            save_rest(new / _OWN_FILE, self, self._by_name)
            configuration = {name: precision.name for name, precision in self.configuration.items()}
            about = {"quantizer": asdict(self.quantizer), "adapters": list(self.lora), "configuration": configuration}
            (new / _SWITCH_FILE).write_text(json.dumps(about, indent=1))

    @property
    def _by_name(self) -> dict[str, SwitchableLinear]:
        return {info.name: layer for info, layer in zip(self.infos, self._layers, strict=True)}

    @classmethod
    def load(cls, path: Path) -> tuple[SwitchableModel, PreTrainedTokenizerBase]:
        """Read back what `save` wrote, in eval mode and at the precision it was saved at.

        Raises:
            ModelError: the directory was not written by `save`, or a file of it is missing, damaged or of another model.
        """
        path = Path(path)
        lm, tokenizer = load_pretrained(f"dir:{path}", dtype="auto")
        check_files(path, (_OWN_FILE, _SWITCH_FILE), "switchable model")
        if unknown := sorted(tensor_types(path / _BASE_FILE).keys() - lm.state_dict().keys()):
            raise ModelError(f"{path / _BASE_FILE}: does not fit the config beside it, whose model has no {unknown[0]}")
        saved = read_json(path / _SWITCH_FILE, _Saved, "quantizer")
        folders = {w_bits: adapter_folder(path, w_bits) for w_bits in saved.adapters}
        for folder in folders.values():
            if not folder.is_dir():
                raise ModelError(f"{folder}: no such directory, though {_SWITCH_FILE} beside it lists that adapter")
        model = cls(lm, saved.quantizer)
        specs = {w_bits: read_spec(folder) for w_bits, folder in folders.items()}
        try:
            model.add_adapters(specs)
            if saved.configuration:
                model.set_precision(Configuration({name: Precision.parse(p) for name, p in saved.configuration.items()}))
        except ValueError as error:
            raise ModelError(f"{path / _SWITCH_FILE}: {error}") from error
        for w_bits, folder in folders.items():
            load_adapter(folder, model._by_name, w_bits)
        load_rest(path / _OWN_FILE, model, model._by_name)
        return model.eval(), tokenizer


def _adapter_files(path: Path) -> list[str]:
    """The adapters' files of an earlier save. PEFT would take such an adapter for one of the model that is saved now."""
    try:
        adapters = read_json(path / _SWITCH_FILE, _Saved).adapters
    except ModelError:  # nothing was saved here, or what was is damaged: then no file in `adapters` is known to be a save's
        return []
    folders = [adapter_folder(Path(), w_bits) for w_bits in adapters]
    return [str(folder / name) for folder in folders for name in ADAPTER_FILES]
