"""A linear layer whose precision is switched by writing an attribute, with a LoRA adapter for every weight bit-width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qatlib.arguments import QuantizerArguments
from qatlib.precision import FULL, FULL_PRECISION
from qatlib.quantizer import (
    EMAObserver,
    dequantize,
    fake_quantize,
    fake_quantize_dynamic,
    minmax_scale,
    quantize,
    scale_from_absmax,
)


@dataclass(frozen=True)
class LoraSpec:
    """Rank, scaling numerator and dropout of one adapter (Hu et al. 2022); its output is scaled by alpha / rank."""

    rank: int
    alpha: float
    dropout: float = 0.0


class Lora(nn.Module):
    """x ↦ (alpha / rank) · B A dropout(x). B starts at zero, so a fresh adapter adds nothing."""

    def __init__(self, in_features: int, out_features: int, spec: LoraSpec) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(spec.rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, spec.rank))
        self.scaling = spec.alpha / spec.rank
        self.dropout = spec.dropout
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, in_features) → (…, out_features)."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return F.linear(F.linear(x, self.lora_A * self.scaling), self.lora_B)


class SwitchableLinear(nn.Module):
    """Drop-in for `nn.Linear` and GPT-2's `Conv1D` with a precision that is data.

    At precision (w, a): y = Q_w(W) Q_a(x) + b + LoRA_w(Q_a(x)). Everything that enters the layer passes the
    activation quantizer, the adapter's input too, so that an adapter is no way around it. The base weight W is frozen,
    so the codes of a bit-width are computed once; a step reads them back where its width is another than the last. Where W is
    trainable (full fine-tuning) it is fake-quantized at every call, with a straight-through gradient.

    Attributes:
        weight: the base weight in the replaced layer's own layout: (out, in) of `nn.Linear`, (in, out) of `Conv1D`.
        precision: the active `Precision`; switching writes this and nothing else.
        adapters: one `Lora` a weight bit-width, keyed by its decimal string.
        observer: magnitude for static activation scales, one a layer, written by calibration.
        observing: while True, `observer` takes in what the layer is given.
    """

    def __init__(self, base: nn.Linear | Conv1D, quantizer: QuantizerArguments) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach(), requires_grad=False)
        self.fan_in_fan_out = isinstance(base, Conv1D)
        self.in_features, self.out_features = self.oriented_weight.shape[1], self.oriented_weight.shape[0]
        self.quantizer = quantizer
        self.precision = FULL_PRECISION
        self.adapters = nn.ModuleDict()
        self.observer = EMAObserver()
        self.observing = False
        self._codes: dict[int, tuple[Tensor, Tensor]] = {}
        self._codes_of = 0  # the version of the weight that the codes were computed of
        self._dequantized: tuple[int, Tensor] | None = None

    @property
    def oriented_weight(self) -> Tensor:
        """The base weight as (out, in), a view: `F.linear` on it runs the very kernel the replaced layer ran."""
        return self.weight.t() if self.fan_in_fan_out else self.weight

    def add_adapters(self, specs: Mapping[int, LoraSpec]) -> None:
        """Add a fresh adapter for each weight bit-width, replacing what was there."""
        self.adapters = nn.ModuleDict({str(w): Lora(self.in_features, self.out_features, s) for w, s in specs.items()})
        self.adapters.to(self.weight.device).train(self.training)

    @torch.no_grad()
    def merge_adapter(self, w_bits: int) -> None:
        """Add the adapter of that weight bit-width to the base weight; the adapter itself stays."""
        adapter = self.adapters[str(w_bits)]
        assert isinstance(adapter, Lora)
        self.oriented_weight.add_(adapter.lora_B @ (adapter.lora_A * adapter.scaling))
        self.forget_codes()

    def codes(self, w_bits: int) -> tuple[Tensor, Tensor]:
        """Integer codes (out, in) and scale ((out, 1) or a scalar) of the base weight, computed once a bit-width."""
        if self._codes_of != self.weight._version:
            self.forget_codes()
        if w_bits not in self._codes:
            with torch.inference_mode(False), torch.no_grad():
                weight = self.oriented_weight
                scale = self._weight_scale(weight, w_bits)
                self._codes[w_bits] = quantize(weight, scale, w_bits, self.quantizer.narrow_range), scale
        return self._codes[w_bits]

    def forget_codes(self) -> None:
        """Drop what was computed of the base weight; changes in place are noticed, writes to `.data` are not."""
        self._codes_of = self.weight._version
        self._codes.clear()
        self._dequantized = None

    def _weight_scale(self, weight: Tensor, w_bits: int) -> Tensor:
        dims = 1 if self.quantizer.weights == "per_channel" else None
        return minmax_scale(weight, w_bits, dims, self.quantizer.narrow_range)

    def _quantized_weight(self, w_bits: int) -> Tensor:
        weight = self.oriented_weight
        if w_bits == FULL:
            return weight
        if self.weight.requires_grad:
            narrow = self.quantizer.narrow_range
            return fake_quantize(weight, self._weight_scale(weight, w_bits), w_bits, narrow, clips=False)
        # The codes are the store; the floats of the width in use are kept until another width is used,
        # so that a pass over a data set dequantizes once and a switch still writes a single attribute.
        codes, scale = self.codes(w_bits)
        if self._dequantized is None or self._dequantized[0] != w_bits:
            with torch.inference_mode(False):
                self._dequantized = w_bits, dequantize(codes, scale, weight.dtype)
        return self._dequantized[1]

    def _quantized_input(self, x: Tensor, a_bits: int) -> Tensor:
        if self.observing:
            self.observer.observe(x)
        if a_bits == FULL:
            return x
        narrow = self.quantizer.narrow_range
        if self.quantizer.activations == "per_token":
            return fake_quantize_dynamic(x, a_bits, -1, narrow)
        if self.observer.absmax is None:
            raise RuntimeError("static activation scales need a calibration pass: call qatlib.evaluate.calibrate first")
        return fake_quantize(x, scale_from_absmax(self.observer.absmax, a_bits, narrow), a_bits, narrow)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, in_features) → (…, out_features).

        Raises:
            RuntimeError: static activation scales without a calibration pass.
            ValueError: a weight bit-width that has no adapter while other bit-widths have one.
        """
        w_bits, a_bits = self.precision
        x = self._quantized_input(x, a_bits)
        y = F.linear(x, self._quantized_weight(w_bits), self.bias)
        if self.adapters:
            y = self._adapt(x, y, w_bits)
        return y

    def _adapt(self, x: Tensor, y: Tensor, w_bits: int) -> Tensor:
        key = str(w_bits)
        if key in self.adapters:
            return y + self.adapters[key](x)
        if w_bits == FULL:  # the base model itself
            return y
        raise ValueError(f"no adapter for {w_bits}-bit weights; there is one for {', '.join(self.adapters)} bits")

    def _apply(self, fn: Any, recurse: bool = True) -> SwitchableLinear:
        self.forget_codes()
        if self.observer.absmax is not None:
            self.observer.absmax = fn(self.observer.absmax)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget_codes()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, precision={self.precision.name}"
