"""A linear layer on integer codes. It computes the same as a switchable layer, by integer kernels if its widths allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qatlib.arguments import QuantizerArguments
from qatlib.checks import filled, one_of
from qatlib.kernels import CodeMatrix, FloatCodes, exact_kernel
from qatlib.layers import SwitchableLinear
from qatlib.precision import BIT_WIDTHS, FULL, Precision
from qatlib.products import CODE_BITS, AdapterFactors, InputQuantizer, code_product
from qatlib.quantizer import EMAObserver, dequantize, fake_quantize, grouped, narrowed
from qatlib.sharing import rotated_input


class IntegerLinear(nn.Module):
    """The output of a `SwitchableLinear`, computed from the integer codes of its widest width.

    With weights and activations of at most 8 bits it uses `qatlib.products`, by integer kernels if those are exact. Other
    widths multiply dequantized weights. Weights of a narrower width are derived from the widest codes at their first use.
    Only one narrower width is kept at a time.

    None of its tensors is a parameter, so casting the model does not change codes, scales or adapters.

    Attributes:
        precision: the active `Precision`.
        bits: width of the stored codes; 32 if the weights themselves are stored.
        scales: scale of each width's grid: a scalar, (out, 1) or (out, groups, 1).
    """

    def __init__(
        self,
        weight: Tensor,
        bits: int,
        scales: Mapping[int, Tensor],
        *,
        quantizer: QuantizerArguments,
        bias: Tensor | None = None,
        adapters: Mapping[int, tuple[Tensor, Tensor]] | None = None,
        clips: Mapping[int, Tensor] | None = None,
        input_absmax: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bits, self.scales, self.quantizer = bits, dict(scales), quantizer
        self.bias, self.clips, self.input_absmax = bias, dict(clips or {}), input_absmax
        self._kernel = exact_kernel(weight.device)
        self.adapters = {w: AdapterFactors(*factors, bias, self._kernel) for w, factors in (adapters or {}).items()}
        self.precision = Precision(bits, FULL)
        self._wide = CodeMatrix(weight, self.scales[bits]) if bits <= CODE_BITS else weight
        self._narrow: tuple[int, CodeMatrix] | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, layer: SwitchableLinear, widths: Sequence[int]) -> IntegerLinear:
        """A layer with the codes of the widest of `widths`, and with scales and adapters of all widths.

        Raises:
            ValueError: there are no widths, a width is no bit-width, or it has no adapter while others have one.
        """
        filled(widths=widths)
        for w in widths:
            one_of(BIT_WIDTHS, widths=w)
        adapters = {}
        for w in widths:
            if (lora := layer.adapter(w)) is not None:
                adapters[w] = lora.lora_A.detach() * lora.scaling, lora.lora_B.detach().clone()
        bits = max(widths)
        weight = layer.oriented_weight.detach().clone() if bits == FULL else layer.codes(bits)[0]
        scales = {w: layer.codes(w)[1] for w in widths if w != FULL}
        bias = None if layer.bias is None else layer.bias.detach().clone()
        clips = {int(a): clip.detach().exp() for a, clip in layer.clips.items()}
        absmax = layer.observer.absmax if isinstance(layer.observer, EMAObserver) else None
        of_input: dict[str, Any] = {"clips": clips, "input_absmax": absmax}
        return cls(weight, bits, scales, quantizer=layer.quantizer, bias=bias, adapters=adapters, **of_input)

    def stored(self) -> dict[str, Tensor]:
        """All that the layer holds, by name; `restore` makes the same layer from it."""
        tensors = {"codes": self.codes(self.bits)} | {f"scale.{w}": scale for w, scale in self.scales.items()}
        tensors |= {f"clip.{a}": clip for a, clip in self.clips.items()}
        for w, adapter in self.adapters.items():
            tensors |= {f"lora_A.{w}": adapter.lora_A, f"lora_B.{w}": adapter.lora_B}
        optional = {"bias": self.bias, "input_absmax": self.input_absmax}
        return tensors | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], bits: int, quantizer: QuantizerArguments) -> IntegerLinear:
        """The layer that `stored` was called on, at its widest width.

        Raises:
            ValueError: a tensor is missing, unknown, or has another shape than the codes and the quantizer give it.
        """
        _check_stored(tensors, bits, quantizer)
        by_width: dict[str, dict[int, Tensor]] = {kind: {} for kind in ("scale", "clip", "lora_A", "lora_B")}
        for name, value in tensors.items():
            kind, _, w = name.partition(".")
            if w:
                by_width[kind][int(w)] = value
        return cls(
            tensors["codes"],
            bits,
            by_width["scale"],
            quantizer=quantizer,
            bias=tensors.get("bias"),
            adapters={w: (lora_A, by_width["lora_B"][w]) for w, lora_A in by_width["lora_A"].items()},
            clips=by_width["clip"],
            input_absmax=tensors.get("input_absmax"),
        )

    def codes(self, w_bits: int) -> Tensor:
        """Codes (out, in) of one of the stored widths. Narrower codes are derived from the widest ones.

        Raises:
            ValueError: there is no such width.
        """
        wide = self._wide.codes if isinstance(self._wide, CodeMatrix) else self._wide
        if w_bits == self.bits:
            return wide
        one_of(self.scales, w_bits=w_bits)
        return narrowed(wide, self.scales[self.bits], self.scales[w_bits], w_bits, self.quantizer.grid)

    def has(self, w_bits: int) -> bool:
        """Whether weights of that width are stored or can be derived."""
        return w_bits in self.scales or w_bits == self.bits

    def _matrix(self, w_bits: int) -> CodeMatrix | FloatCodes:
        if self._kernel is FloatCodes:
            return FloatCodes(self.codes(w_bits), self.scales[w_bits])
        if w_bits == self.bits:
            self._narrow = None
            assert isinstance(self._wide, CodeMatrix)
            return self._wide
        if self._narrow is None or self._narrow[0] != w_bits:
            self._narrow = w_bits, CodeMatrix(self.codes(w_bits), self.scales[w_bits])
        return self._narrow[1]

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, in_features) → (…, out_features), in the type of `x`.

        Raises:
            RuntimeError: activation scales are static, and there was no calibration pass before deployment.
        """
        w_bits, a_bits = self.precision
        quantizer = InputQuantizer(a_bits, self.quantizer, self.clips.get(a_bits), self.input_absmax)
        if max(w_bits, a_bits) <= CODE_BITS:
            rows = rotated_input(x.float(), quantizer.rotation).reshape(-1, self.in_features)
            y = code_product(rows, quantizer, self._matrix(w_bits), self.adapters.get(w_bits), self.bias)
        else:
            y = self._float_product(x, w_bits, quantizer)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _float_product(self, x: Tensor, w_bits: int, quantizer: InputQuantizer) -> Tensor:
        a_bits, weight = quantizer.bits, self.codes(w_bits)
        if w_bits != FULL:
            scale = self.scales[w_bits]
            weight = dequantize(grouped(weight, scale), scale).view(weight.shape)
        elif a_bits != FULL:
            weight = quantizer.rotation.apply(weight)
        x = x.to(weight.dtype)
        seen = rotated_input(x, quantizer.rotation)
        if a_bits != FULL:
            seen = fake_quantize(seen, quantizer.scale(seen), a_bits, quantizer.grid)
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        y = F.linear(x if w_bits == a_bits == FULL else seen, weight, bias)
        adapter = self.adapters.get(w_bits)
        return y if adapter is None else y + F.linear(F.linear(seen.to(adapter.lora_A.dtype), adapter.lora_A), adapter.lora_B)

    def memory(self) -> dict[str, int]:
        """Bytes in memory now: stored `codes`, `scales` of all widths, and `derived` codes of the narrower width in use."""
        return {
            "codes": self._wide.nbytes,
            "scales": sum(scale.nbytes for scale in self.scales.values()),
            "derived": self._narrow[1].nbytes if self._narrow else 0,
        }

    def _apply(self, fn: Any, recurse: bool = True) -> IntegerLinear:
        here = self._wide.device
        if fn(torch.empty(0, device=here)).device != here:
            raise RuntimeError("a deployed model stays where it is: move the model before it is deployed")
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, precision={self.precision.name}"


def _check_stored(tensors: Mapping[str, Tensor], bits: int, quantizer: QuantizerArguments) -> None:
    if bits not in BIT_WIDTHS or (bits != FULL and f"scale.{bits}" not in tensors):
        raise ValueError(f"codes of {bits!r} bits, without a scale for them")
    out, inputs = tensors["codes"].shape
    groups = inputs // quantizer.group_size
    scale = {"per_tensor": (), "per_channel": (out, 1), "per_group": (out, groups, 1)}[quantizer.weights]
    for name, tensor in tensors.items():
        kind, _, w = name.partition(".")
        if (kind in ("scale", "clip", "lora_A", "lora_B")) != (w.isdecimal() and int(w) in BIT_WIDTHS):
            raise ValueError(f"{name} is not known")
        rank = tensors[f"lora_A.{w}"].shape[0] if f"lora_A.{w}" in tensors else 0
        shapes: dict[str, tuple[int, ...]] = {
            "codes": (out, inputs),
            "scale": scale,
            "bias": (out,),
            "clip": (),
            "input_absmax": (),
        }
        shapes |= {"lora_A": (rank, inputs), "lora_B": (out, rank)}
        if tuple(tensor.shape) != shapes.get(kind) or (kind.startswith("lora") and rank == 0):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected is {shapes.get(kind)}")
        if tensor.is_floating_point() == (kind == "codes" and bits != FULL):
            raise ValueError(f"{name} is of type {tensor.dtype}")
    if pairs := {n[7:] for n in tensors if n.startswith("lora_A.")} ^ {n[7:] for n in tensors if n.startswith("lora_B.")}:
        raise ValueError(f"the adapter for {min(pairs)} bits has one factor, expected are two")
