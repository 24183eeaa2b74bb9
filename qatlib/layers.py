"""A linear layer whose precision is switched by writing an attribute, with LoRA adapters for each weight bit-width or for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qatlib.arguments import QuantizerArguments
from qatlib.kernels import CodeMatrix, FloatCodes, exact_kernel
from qatlib.precision import FULL, FULL_PRECISION, Precision
from qatlib.products import CODE_BITS, AdapterFactors, InputQuantizer, code_product
from qatlib.quantizer import (
    EMAObserver,
    Observer,
    dequantize,
    fake_quantize,
    grouped,
    minmax_scale,
    mse_scale,
    narrowed,
    quantize,
    quantize_gradient,
    rotate,
)

SHARED = 0
"""In the place of a weight bit-width: the adapter that all of them share."""

NESTED_IN = 8
"""The bit-width whose codes those of fewer bits are derived from, with `QuantizerArguments.nested`."""


@contextmanager
def forwards_replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules that compute something else for the length of a `with` block; their hooks run as ever."""
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward  # before the class's own
    try:
        yield
    finally:
        for module in forwards:
            del module.__dict__["forward"]


@contextmanager
def multiplied_as_floats(layers: Sequence[SwitchableLinear]) -> Iterator[None]:
    """Layers that answer without integer kernels for the length of a `with` block: the simulation of a deployed model."""
    for layer in layers:
        layer.by_integers = False
    try:
        yield
    finally:
        for layer in layers:
            layer.by_integers = True


@dataclass(frozen=True)
class LoraSpec:
    """Rank, scaling numerator and dropout of one adapter (Hu et al. 2022); its output is scaled by alpha / rank.

    Example:
        >>> model.add_adapters({8: LoraSpec(8, 16), 4: LoraSpec(rank=16, alpha=32, dropout=0.05)})
        >>> model.lora[4].rank
        16
    """

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
    so the codes of a bit-width are computed once; a step reads them back where its width is another than the last.
    Where W or its step sizes are trained it is fake-quantized at every call, with a straight-through gradient.

    With `QuantizerArguments.rotation` W and x are quantized as rotate(W) and rotate(x), and adapters see rotate(x) at
    every precision; at full precision the product itself is left as it was.

    Attributes:
        weight: the base weight in the replaced layer's own layout: (out, in) of `nn.Linear`, (in, out) of `Conv1D`.
        precision: the active `Precision`; switching writes this and nothing else.
        gradient_bits: what the gradient of the layer's output is quantized to in the backward pass; 32 for not at all.
        adapters: one `Lora` a weight bit-width, keyed by its decimal string, or a single one under `SHARED`.
        clips: by activation bit-width, the log of the share of a token's largest magnitude at which the grid ends.
        steps: by weight bit-width, the log of the factor by which training has changed its scale, of the scale's shape.
        by_integers: whether it answers by integer kernels, where the device's are exact; if not, codes are multiplied as
            floats, with the same results.
        observer: takes in what the layer is given while `observing`; an `EMAObserver` gives static activation scales.
    """

    def __init__(self, base: nn.Linear | Conv1D, quantizer: QuantizerArguments) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach(), requires_grad=False)
        self.fan_in_fan_out = isinstance(base, Conv1D)
        self.in_features, self.out_features = self.oriented_weight.shape[1], self.oriented_weight.shape[0]
        self.quantizer = quantizer
        self.precision = FULL_PRECISION
        self.gradient_bits = FULL
        self.adapters = nn.ModuleDict()
        self.clips = nn.ParameterDict()
        self.steps = nn.ParameterDict()
        self.observer: Observer = EMAObserver()
        self.observing = False
        self.by_integers = True
        self._scales: dict[int, Tensor] = {}
        self._scales_of = 0  # the version of the weight that they were computed of
        self._codes: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        self._dequantized: tuple[tuple[int, ...], Tensor] | None = None
        self._matrix: tuple[tuple[int, ...], CodeMatrix | FloatCodes] | None = None

    @property
    def oriented_weight(self) -> Tensor:
        """The base weight as (out, in), a view: `F.linear` on it runs the very kernel the replaced layer ran."""
        return self.weight.t() if self.fan_in_fan_out else self.weight

    @property
    def rotated(self) -> bool:
        """Whether the layer is quantized in the rotated basis."""
        return self.quantizer.rotation == "hadamard"

    def add_adapters(self, specs: Mapping[int, LoraSpec]) -> None:
        """Add a fresh adapter for each weight bit-width, or for `SHARED`, replacing what was there."""
        self.adapters = nn.ModuleDict({str(w): Lora(self.in_features, self.out_features, s) for w, s in specs.items()})
        self.adapters.to(self.weight.device).train(self.training)

    def learn_steps(self, w_bits: Iterable[int], a_bits: Iterable[int]) -> None:
        """Make the scales of these bit-widths parameters that start where they are: their logs, so that none turns negative."""
        for bits in w_bits:
            start = self.steps.get(str(bits), torch.zeros_like(self.scale(bits)))
            self.steps[str(bits)] = nn.Parameter(start.detach().clone())
        for bits in a_bits:
            start = self.clips.get(str(bits), self.weight.new_zeros(()))
            self.clips[str(bits)] = nn.Parameter(start.detach().clone())

    @torch.no_grad()
    def merge_adapter(self, w_bits: int) -> None:
        """Add the adapter of that weight bit-width to the base weight; the adapter itself stays."""
        adapter = self.adapters[str(w_bits)]
        assert isinstance(adapter, Lora)
        a = rotate(adapter.lora_A) if self.rotated else adapter.lora_A
        self.oriented_weight.add_(adapter.lora_B @ (a * adapter.scaling))
        self.forget_codes()

    def codes(self, w_bits: int) -> tuple[Tensor, Tensor]:
        """Integer codes (out, in) and scale of the base weight, computed once a bit-width.

        Under `nested` the codes of fewer than `NESTED_IN` bits are derived anew at every call.

        Returns:
            int8 codes (int16 above 8 bits), and a scale: (out, 1), a scalar (per tensor) or (out, groups, 1).
        """
        with torch.inference_mode(False), torch.no_grad():
            scale, version = self.scale(w_bits), self._made_of(w_bits)
            if w_bits not in self._codes or self._codes[w_bits][0] != version:
                if self._is_derived(w_bits):
                    return narrowed(*self.codes(NESTED_IN), scale, w_bits, self.quantizer.grid), scale
                weight = self._grouped(self._in_basis(self.oriented_weight))
                codes = quantize(weight, scale, w_bits, self.quantizer.grid).reshape(self.out_features, -1)
                self._codes[w_bits] = version, codes
            return self._codes[w_bits][1], scale

    def scale(self, w_bits: int) -> Tensor:
        """The scale of a bit-width's codes, with what training has made of it."""
        if self._scales_of != self.weight._version:
            self.forget_codes()
        if w_bits not in self._scales:
            with torch.inference_mode(False), torch.no_grad():
                self._scales[w_bits] = self._found_scale(self._in_basis(self.oriented_weight), w_bits)
        found, key = self._scales[w_bits], str(w_bits)
        return found * self.steps[key].exp() if key in self.steps else found

    def read_back(self, w_bits: int) -> Tensor:
        """The base weight (out, in) as its codes of a bit-width say, in the basis of the weight itself."""
        return self._in_basis(self._read_back(*self.codes(w_bits)))

    def forget_codes(self) -> None:
        """Drop what was computed of the base weight; changes in place are noticed, writes to `.data` are not."""
        self._scales_of = self.weight._version
        self._scales.clear()
        self._codes.clear()
        self._dequantized = self._matrix = None

    def _made_of(self, w_bits: int) -> tuple[int, ...]:
        """Changes whenever the codes of this width do."""
        widths = {str(w_bits), str(NESTED_IN)} if self.quantizer.nested else {str(w_bits)}
        return (self.weight._version, *(step._version for key, step in self.steps.items() if key in widths))

    def _found_scale(self, weight: Tensor, w_bits: int) -> Tensor:
        find = mse_scale if self.quantizer.clipping == "mse" else minmax_scale
        return find(self._grouped(weight), w_bits, None if self.quantizer.weights == "per_tensor" else -1, self.quantizer.grid)

    def _in_basis(self, x: Tensor) -> Tensor:
        return rotate(x) if self.rotated else x

    def _is_derived(self, w_bits: int) -> bool:
        return self.quantizer.nested and w_bits < NESTED_IN

    def _grouped(self, weight: Tensor) -> Tensor:
        """(out, in) → (out, groups, group size) where groups have scales of their own."""
        return weight.unflatten(1, (-1, self.quantizer.group_size)) if self.quantizer.weights == "per_group" else weight

    def _read_back(self, codes: Tensor, scale: Tensor) -> Tensor:
        return dequantize(grouped(codes, scale), scale, self.weight.dtype).view_as(codes)

    def _quantized_weight(self, w_bits: int) -> Tensor:
        trained = self.weight.requires_grad or (self.training and torch.is_grad_enabled() and str(w_bits) in self.steps)
        if trained or (w_bits == FULL and not self.rotated):
            return self._trained_weight(w_bits)
        # The codes are the store; the floats of the width in use are kept until another width is used,
        # so that a pass over a data set dequantizes once and a switch still writes a single attribute.
        version = (w_bits, *self._made_of(w_bits))
        if self._dequantized is None or self._dequantized[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                full = w_bits == FULL
                floats = self._in_basis(self.oriented_weight) if full else self._read_back(*self.codes(w_bits))
                self._dequantized = version, floats
        return self._dequantized[1]

    def _code_matrix(self, w_bits: int) -> CodeMatrix | FloatCodes:
        """The codes of the width in use, kept like its floats."""
        kind = exact_kernel(self.weight.device) if self.by_integers else FloatCodes
        version = (w_bits, *self._made_of(w_bits))
        if self._matrix is None or self._matrix[0] != version or type(self._matrix[1]) is not kind:
            with torch.inference_mode(False), torch.no_grad():
                self._matrix = version, kind(*self.codes(w_bits))
        return self._matrix[1]

    def _trained_weight(self, w_bits: int) -> Tensor:
        """Fake-quantized at this very call, with gradients to the weight and to the step sizes that are trained."""
        with torch.autocast(self.weight.device.type, enabled=False):  # its codes are of the weight in fp32
            weight = self._in_basis(self.oriented_weight)
        if w_bits == FULL:
            return weight
        if self.weight.requires_grad:  # its scale follows it
            scale = self._found_scale(weight, w_bits)
            if str(w_bits) in self.steps:
                scale = scale * self.steps[str(w_bits)].exp()
        else:
            weight = self._read_back(*self.codes(NESTED_IN)) if self._is_derived(w_bits) else weight
            scale = self.scale(w_bits)
        clips = self.quantizer.clipping != "minmax" or str(w_bits) in self.steps
        return fake_quantize(self._grouped(weight), scale, w_bits, self.quantizer.grid, clips=clips).reshape(weight.shape)

    def _input_quantizer(self, a_bits: int) -> InputQuantizer:
        clip = self.clips.get(str(a_bits), None)
        return InputQuantizer(
            a_bits, self.quantizer, None if clip is None else clip.exp(), getattr(self.observer, "absmax", None)
        )

    def _quantized_input(self, x: Tensor, a_bits: int) -> Tensor:
        if self.observing:
            self.observer.observe(x)
        if a_bits == FULL:
            return x
        quantizer = self._input_quantizer(a_bits)
        clips = quantizer.clip is not None or self.quantizer.activations != "per_token"
        return fake_quantize(x, quantizer.scale(x), a_bits, quantizer.grid, clips=clips)

    def _answers_by_codes(self, x: Tensor) -> bool:
        """Whether nothing but the answer is asked for, in fp32, at widths that integer kernels take."""
        wants_gradient = self.training or torch.is_grad_enabled() or self.observing
        fp32 = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        return not wants_gradient and fp32 and max(self.precision) <= CODE_BITS

    def _code_product(self, x: Tensor) -> Tensor:
        w_bits, a_bits = self.precision
        matrix, lora = self._code_matrix(w_bits), self.adapter(w_bits)
        factors = None if lora is None else AdapterFactors(lora.lora_A * lora.scaling, lora.lora_B, self.bias, type(matrix))
        y = code_product(x.reshape(-1, self.in_features), self._input_quantizer(a_bits), matrix, factors, self.bias)
        return y.view(*x.shape[:-1], self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, in_features) → (…, out_features).

        Where no gradient is wanted it multiplies codes, as the deployed layer does and to the last bit; else it multiplies
        codes read back as floats, which is the same but for fp32 rounding.

        Raises:
            RuntimeError: static activation scales without a calibration pass.
            ValueError: a weight bit-width that has no adapter while other bit-widths have one.
        """
        if self._answers_by_codes(x):
            return self._code_product(x)
        w_bits, a_bits = self.precision
        full = w_bits == a_bits == FULL
        seen = self._quantized_input(x if full and not (self.adapters or self.observing) else self._in_basis(x), a_bits)
        y = F.linear(x, self.oriented_weight, self.bias) if full else F.linear(seen, self._quantized_weight(w_bits), self.bias)
        adapter = self.adapter(w_bits)
        y = y if adapter is None else y + adapter(seen)
        return y if self.gradient_bits == FULL else quantize_gradient(y, self.gradient_bits)

    def at_each(self, precisions: Iterable[Precision], x: Tensor) -> Iterator[Tensor]:
        """What the layer gives at one precision after the other, whatever stands in for its `forward`; it stays at the last."""
        for precision in precisions:
            self.precision = precision
            yield SwitchableLinear.forward(self, x)

    def adapter(self, w_bits: int) -> Lora | None:
        """The adapter in use at a weight bit-width: its own, or the one that all share; at 32 bits there may be none.

        Raises:
            ValueError: a narrower width that has no adapter while others have one.
        """
        for key in (str(w_bits), str(SHARED)):
            if key in self.adapters:
                found = self.adapters[key]
                assert isinstance(found, Lora)
                return found
        if w_bits != FULL and self.adapters:
            raise ValueError(f"no adapter for {w_bits}-bit weights; there is one for {', '.join(self.adapters)} bits")
        return None

    def _apply(self, fn: Any, recurse: bool = True) -> SwitchableLinear:
        self.forget_codes()
        if isinstance(self.observer, EMAObserver) and self.observer.absmax is not None:
            self.observer.absmax = fn(self.observer.absmax)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget_codes()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, precision={self.precision.name}"
