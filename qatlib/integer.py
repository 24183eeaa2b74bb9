"""A linear layer on integer codes: what a switchable layer computes, by integer kernels where its widths allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qatlib.arguments import QuantizerArguments
from qatlib.kernels import CodeMatrix, is_exact, three_digits
from qatlib.layers import SwitchableLinear
from qatlib.precision import FULL, Precision
from qatlib.quantizer import (
    EMAObserver,
    activation_grid,
    code_range,
    dequantize,
    fake_quantize,
    grouped,
    minmax_scale,
    narrowed,
    rotate,
    scale_from_absmax,
)

INTEGER_BITS = 8
"""The widest codes that integer kernels take; wider ones are stored as they are and multiplied as floats."""

_BLOCK = 2**18
"""Elements that a run of element-wise steps works on at a time: a megabyte of fp32 stays in the cache between them."""


_FEW_TOKENS = 64
"""Below that an adapter's product with floats is faster than the one with digits."""


class _Adapter:
    """A LoRA adapter's two factors, laid out for the integer product.

    The first also in digits, so that it reads the codes of the layer's input; the second, transposed, with the layer's bias
    as a last row, so that both are added in one pass.
    """

    def __init__(self, lora_A: Tensor, lora_B: Tensor, bias: Tensor | None) -> None:
        self.lora_A, self.lora_B = lora_A.contiguous(), lora_B.contiguous()
        self._digits = CodeMatrix(*three_digits(lora_A))
        self.up = torch.cat([lora_B.t(), lora_B.new_zeros(1, len(lora_B)) if bias is None else bias[None]])

    def down(self, codes: Tensor, scale: Tensor) -> Tensor:
        """(tokens, in) int8 and (tokens, 1) → (tokens, rank + 1), fp32, the last column of ones."""
        if len(codes) < _FEW_TOKENS:
            low = F.linear(codes.float(), self.lora_A)
        else:
            low = self._digits.matmul(codes).view(len(codes), 3, -1).sum(1)
        return F.pad(low.mul_(scale), (0, 1), value=1.0)


class IntegerLinear(nn.Module):
    """What a `SwitchableLinear` computes, from integer codes of the widest of its widths.

    With weights and activations of at most 8 bits, y = s_x · (s_w · (codes · codesᵀ) + LoRA(codes)) + b: the sums of products
    are integers and exact, everything after is fp32. Other widths multiply dequantized weights. Weights of a narrower width
    are derived from the widest codes when first used; those of one narrower width are kept at a time.

    None of its tensors is a parameter: casting the model around it leaves codes, scales and adapters as they are.

    Attributes:
        precision: the active `Precision`.
        bits: width of the stored codes; at 32 the weights themselves are stored.
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
        self.adapters = {w: _Adapter(*factors, bias) for w, factors in (adapters or {}).items()}
        self.precision = Precision(bits, FULL)
        self._wide = CodeMatrix(weight, self.scales[bits]) if bits <= INTEGER_BITS else weight
        self._narrow: tuple[int, CodeMatrix] | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, layer: SwitchableLinear, widths: Sequence[int]) -> IntegerLinear:
        """With the codes of the widest of `widths`, and scales and adapters of all of them.

        Raises:
            ValueError: a width that has no adapter while others have one.
        """
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
        """Everything the layer holds, by name; `restore` makes the same layer of it."""
        tensors = {"codes": self.codes(self.bits)} | {f"scale.{w}": scale for w, scale in self.scales.items()}
        tensors |= {f"clip.{a}": clip for a, clip in self.clips.items()}
        for w, adapter in self.adapters.items():
            tensors |= {f"lora_A.{w}": adapter.lora_A, f"lora_B.{w}": adapter.lora_B}
        optional = {"bias": self.bias, "input_absmax": self.input_absmax}
        return tensors | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], bits: int, quantizer: QuantizerArguments) -> IntegerLinear:
        """The layer that `stored` was called on, at its widest width."""
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
        """Codes (out, in) of one of the stored widths, below the widest by way of the widest."""
        wide = self._wide.codes if isinstance(self._wide, CodeMatrix) else self._wide
        if w_bits == self.bits:
            return wide
        return narrowed(wide, self.scales[self.bits], self.scales[w_bits], w_bits, self.quantizer.grid)

    def has(self, w_bits: int) -> bool:
        """Whether weights of that width are stored or can be derived."""
        return w_bits in self.scales or w_bits == self.bits

    def _matrix(self, w_bits: int) -> CodeMatrix:
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
            RuntimeError: static activation scales without a calibration pass before the model was deployed.
        """
        w_bits, a_bits = self.precision
        rows = x.reshape(-1, self.in_features).float()
        integer = max(w_bits, a_bits) <= INTEGER_BITS and is_exact(x.device)
        y = self._integer_product(rows, w_bits, a_bits) if integer else self._float_product(rows, w_bits, a_bits)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _integer_product(self, x: Tensor, w_bits: int, a_bits: int) -> Tensor:
        codes, scale = self._input_codes(x, a_bits)
        y = self._matrix(w_bits).matmul(codes)
        adapter = self.adapters.get(w_bits)
        low = None if adapter is None else adapter.down(codes, scale)
        for rows in _blocks(y):
            part = y[rows].mul_(scale[rows])
            if adapter is not None and low is not None:
                part.addmm_(low[rows], adapter.up)
            elif self.bias is not None:
                part.add_(self.bias)
        return y

    def _input_codes(self, x: Tensor, a_bits: int) -> tuple[Tensor, Tensor]:
        """`quantize` with the scale of `_input_scale`, to the last bit, block by block: (tokens, in), (tokens, 1)."""
        ends = code_range(a_bits, activation_grid(self.quantizer.grid))
        codes, scale = torch.empty_like(x, dtype=torch.int8), torch.empty(len(x), 1, device=x.device)
        for rows in _blocks(x):
            seen = self._in_basis(x[rows])
            scale[rows] = self._input_scale(seen, a_bits)
            codes[rows] = torch.div(seen, scale[rows]).round_().clamp_(*ends)
        return codes, scale

    def _float_product(self, x: Tensor, w_bits: int, a_bits: int) -> Tensor:
        seen = self._in_basis(x)
        if a_bits != FULL:
            seen = fake_quantize(seen, self._input_scale(seen, a_bits), a_bits, activation_grid(self.quantizer.grid))
        weight = self.codes(w_bits)
        if w_bits != FULL:
            scale = self.scales[w_bits]
            weight = dequantize(grouped(weight, scale), scale).view(weight.shape)
        elif a_bits != FULL:
            weight = self._in_basis(weight)
        y = F.linear(x if w_bits == a_bits == FULL else seen, weight, self.bias)
        adapter = self.adapters.get(w_bits)
        return y if adapter is None else y + F.linear(F.linear(seen, adapter.lora_A), adapter.lora_B)

    def _in_basis(self, x: Tensor) -> Tensor:
        return rotate(x) if self.quantizer.rotation == "hadamard" else x

    def _input_scale(self, x: Tensor, a_bits: int) -> Tensor:
        grid = activation_grid(self.quantizer.grid)
        if self.quantizer.activations == "per_token":
            scale = minmax_scale(x, a_bits, -1, grid)
            return scale * self.clips[a_bits] if a_bits in self.clips else scale
        if self.input_absmax is None:
            raise RuntimeError("static activation scales need a calibration pass before the model is deployed")
        return scale_from_absmax(self.input_absmax, a_bits, grid)

    def memory(self) -> dict[str, int]:
        """Bytes in memory now: `codes` stored, `scales` of all widths, `derived` codes of a narrower width in use."""
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


def _blocks(x: Tensor) -> list[slice]:
    """Runs of rows of (rows, columns) to work on one after the other: all at once on a GPU."""
    size = len(x) if x.is_cuda else max(1, _BLOCK // x.shape[1])
    return [slice(start, start + size) for start in range(0, len(x), max(1, size))]
