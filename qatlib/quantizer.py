"""Symmetric integer quantization: codes and scales, fake quantization with a straight-through gradient, observers.

A real number x is stored as an integer code q and read back as q · s:

    q = clamp(round(x / s), q_min, q_max),    x̂ = q · s

The scale s comes from the largest magnitude of the group that shares it (min-max, as in LLM-QAT, Liu et al. 2023, eq. 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Dims = int | tuple[int, ...] | None
"""The dimensions a scale is shared over; `None` is all of them (per tensor)."""


def code_range(bits: int, narrow_range: bool = True) -> tuple[int, int]:
    """Smallest and largest code of a signed grid.

    Narrow (LLM-QAT): ±(2^(b−1) − 1), symmetric about 0, three levels at 2 bits. Full (torchao): −2^(b−1) … 2^(b−1) − 1,
    one level more on the negative side, which matters at 2 bits (four levels) and hardly from 4 on.

    Raises:
        ValueError: `bits` outside 2..16.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"a grid has 2 to 16 bits, not {bits}")
    q_max = 2 ** (bits - 1) - 1
    return (-q_max if narrow_range else -q_max - 1), q_max


def code_dtype(bits: int) -> torch.dtype:
    """The integer type codes of that bit-width are kept in."""
    return torch.int8 if bits <= 8 else torch.int16


def absmax(x: Tensor, dims: Dims = None) -> Tensor:
    """Largest magnitude over `dims`, which are kept with size 1 (a scalar for `None`), in at least fp32."""
    x = x.detach()
    if dims is None:
        low, high = torch.aminmax(x)
    elif isinstance(dims, int):
        low, high = torch.aminmax(x, dim=dims, keepdim=True)
    else:
        low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    return _at_least_float(torch.maximum(high, -low))


def scale_from_absmax(magnitude: Tensor, bits: int, narrow_range: bool = True) -> Tensor:
    """The min-max scale: the largest magnitude meets the end of the narrow grid, so nothing is clipped.

    On the full grid it lies half a step beyond the positive end, and is read back as that end.

    Args:
        magnitude: largest magnitude of each group, any shape.

    Returns:
        A positive scale of the same shape; groups of zeros get the smallest normal number, so that 0 / s is 0.
    """
    q_min, q_max = code_range(bits, narrow_range)
    return (magnitude / ((q_max - q_min) / 2)).clamp_min(torch.finfo(magnitude.dtype).tiny)


def minmax_scale(x: Tensor, bits: int, dims: Dims = None, narrow_range: bool = True) -> Tensor:
    """`scale_from_absmax` of `x` over `dims`; broadcasts against `x`."""
    return scale_from_absmax(absmax(x, dims), bits, narrow_range)


def quantize(x: Tensor, scale: Tensor, bits: int, narrow_range: bool = True) -> Tensor:
    """Codes of `x` (any shape) on the grid of `scale` (broadcastable): int8 up to 8 bits, int16 above.

    Rounds half to even. Values beyond the grid go to its ends. `x` must be finite.
    """
    q_min, q_max = code_range(bits, narrow_range)
    return torch.round(_at_least_float(x) / scale).clamp_(q_min, q_max).to(code_dtype(bits))


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`codes · scale`, computed in the scale's type (fp32 or wider) and rounded once to `dtype`."""
    x = codes.to(scale.dtype) * scale
    return x if dtype is None else x.to(dtype)


class _FakeQuantize(torch.autograd.Function):
    """Round to the grid; the gradient passes straight through where nothing was clamped (Bengio et al. 2013).

    Of the input only the clamp mask is kept for the backward pass, and with a min-max scale not even that.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, q_min: int, q_max: int, clips: bool) -> Tensor:
        codes = torch.round(_at_least_float(x) / scale)
        ctx.clips = clips and ctx.needs_input_grad[0]
        if ctx.clips:
            ctx.save_for_backward((codes >= q_min) & (codes <= q_max))
        return codes.clamp_(q_min, q_max).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = grad_outputs
        if ctx.clips:
            (inside,) = ctx.saved_tensors
            grad = grad * inside
        return grad, None, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, bits: int, narrow_range: bool = True, *, clips: bool = True) -> Tensor:
    """`dequantize(quantize(x))` to the last bit, in the type of `x`, with a straight-through gradient.

    Args:
        x: any shape, finite.
        scale: broadcastable to `x`.
        clips: whether some of `x` may lie beyond the grid. Pass False with a min-max scale of the same `x`:
            the result is the same and the backward pass keeps nothing.

    Returns:
        Same shape and type as `x`. The gradient is 1 inside the grid and 0 where a value was clamped to its end.
    """
    q_min, q_max = code_range(bits, narrow_range)
    result: Tensor = _FakeQuantize.apply(x, scale, q_min, q_max, clips)
    return result


def fake_quantize_dynamic(x: Tensor, bits: int, dims: Dims = -1, narrow_range: bool = True) -> Tensor:
    """Fake quantization with a min-max scale of `x` itself: `dims=-1` is one scale a token (ZeroQuant, Yao et al. 2022)."""
    return fake_quantize(x, minmax_scale(x, bits, dims, narrow_range), bits, narrow_range, clips=False)


class EMAObserver:
    """Running magnitude of a tensor for a static scale: m ← momentum · m + (1 − momentum) · max|x|.

    The first observation sets m (Jacob et al. 2018, section 3.1, with the start-up bias left out).
    """

    def __init__(self, momentum: float = 0.9) -> None:
        self.momentum = momentum
        self.absmax: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        """Take in one batch, any shape."""
        seen = absmax(x)
        self.absmax = seen if self.absmax is None else torch.lerp(seen, self.absmax, self.momentum)


def sqnr_db(x: Tensor, quantized: Tensor) -> float:
    """Signal-to-quantization-noise ratio 10·log10(Σx² / Σ(x − x̂)²) in dB; infinite where nothing changed."""
    noise = (x.double() - quantized.double()).square().sum()
    return float(10 * torch.log10(x.double().square().sum() / noise))


def _at_least_float(x: Tensor) -> Tensor:
    """bf16 and fp16 hold neither 16-bit codes nor a quotient well enough: arithmetic is in fp32 for those."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
