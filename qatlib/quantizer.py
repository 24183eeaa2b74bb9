"""Symmetric integer quantization: codes and scales, clipping, gradients through the rounding, observers.

A real number x is stored as an integer code q and read back as q · s:

    q = clamp(round(x / s), q_min, q_max),    x̂ = q · s

The scale s comes from the largest magnitude of the group that shares it (min-max, as in LLM-QAT, Liu et al. 2023, eq. 1),
from a search for the least squared error, or is learned (LSQ, Esser et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from qatlib.arguments import Grid
from qatlib.grids import Codes, code_dtype, codes_of

Dims = int | tuple[int, ...] | None
"""The dimensions over which a scale is shared; `None` means all of them (per tensor)."""


def absmax(x: Tensor, dims: Dims = None) -> Tensor:
    """Largest magnitude over `dims`, which are kept with size 1 (a scalar for `None`), in at least fp32."""
    x = x.detach()
    if dims is None:
        low, high = torch.aminmax(x)
    else:  # along one dimension, torch's aminmax is not vectorized on a CPU
        low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    return _at_least_float(torch.maximum(high, -low))


def scale_from_absmax(magnitude: Tensor, bits: int, grid: Grid = "narrow") -> Tensor:
    """The min-max scale: the largest magnitude meets the end of the narrow grid, so nothing is clipped.

    On the full grid a positive largest magnitude lies half a step beyond the positive end, and is dequantized to that end.

    Args:
        magnitude: largest magnitude of each group, any shape.

    Returns:
        A positive scale of the same shape, as `Codes.scale`.
    """
    return codes_of(bits, grid).scale(magnitude)


def minmax_scale(x: Tensor, bits: int, dims: Dims = None, grid: Grid = "narrow") -> Tensor:
    """`scale_from_absmax` of `x` over `dims`; broadcasts against `x`.

    Example:
        >>> minmax_scale(torch.tensor([[0.5, -1.0], [2.0, 7.0]]), 4, dims=1)  # one scale per row
        tensor([[0.1429],
                [1.0000]])
    """
    return scale_from_absmax(absmax(x, dims), bits, grid)


def mse_scale(x: Tensor, bits: int, dims: Dims = None, grid: Grid = "narrow") -> Tensor:
    """The scale of least squared error: the min-max scale times the best of `CLIP_RATIOS` for each group.

    Returns:
        As `minmax_scale`.
    """
    widest = minmax_scale(x, bits, dims, grid)
    best, least = widest, torch.full_like(widest, torch.inf)
    for ratio in CLIP_RATIOS:
        scale = widest * ratio
        error = (fake_quantize(x.detach(), scale, bits, grid) - x.detach()).float().square().sum(dims, keepdim=dims is not None)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


CLIP_RATIOS: Sequence[float] = tuple(1 - i / 32 for i in range(28))
"""The tried ends of the grid, as shares of the largest magnitude."""


def quantize(x: Tensor, scale: Tensor, bits: int, grid: Grid = "narrow") -> Tensor:
    """Codes of `x` (any shape) on the grid of `scale` (broadcastable): int8 up to 8 bits, int16 above.

    Halves are rounded to even (up, on the midrise grid). Values beyond the grid are clamped to its ends. `x` must be finite.

    Example:
        >>> quantize(torch.tensor([0.2, -1.0, 9.0]), torch.tensor(0.25), bits=4)
        tensor([ 1, -4,  7], dtype=torch.int8)
    """
    codes = codes_of(bits, grid)
    return codes.nearest(_at_least_float(x), scale).clamp_(*codes.ends).to(code_dtype(bits))


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`codes · scale`, computed in the scale's type (fp32 or wider) and rounded once to `dtype`.

    Example:
        >>> dequantize(torch.tensor([1, -4, 7], dtype=torch.int8), torch.tensor(0.25))
        tensor([ 0.2500, -1.0000,  1.7500])
    """
    x = codes.to(scale.dtype) * scale
    return x if dtype is None else x.to(dtype)


def narrowed(codes: Tensor, scale: Tensor, narrow_scale: Tensor, bits: int, grid: Grid = "narrow") -> Tensor:
    """Codes of a narrow width from those of a wide one: q_b = clamp(round(q · s / s_b)).

    The narrow grid's scale is free, so this is more general than dropping low bits (MatQuant, Nair et al. 2025, has s_b = 2^(wide
    − b) · s). Compared with quantizing the weights themselves, it costs one more rounding.

    Args:
        codes: (out, in) integers.
        scale, narrow_scale: of the wide and of the narrow grid, both a scalar, (out, 1) or (out, groups, 1).
        bits: the narrow width.

    Returns:
        (out, in), int8 up to 8 bits and int16 above.
    """
    # the quotient of the scales first: if it is a power of two, the result is exact, including ties
    ratio = narrow_scale / scale
    return quantize(grouped(codes, ratio), ratio, bits, grid).view(codes.shape)


def grouped(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes (out, in) as (out, groups, in / groups) if the scale has groups, so that both broadcast."""
    return codes.unflatten(1, (scale.shape[1], -1)) if scale.ndim == 3 else codes


class _FakeQuantize(torch.autograd.Function):
    """Round to the grid. The gradient passes straight through where nothing was clamped (Bengio et al. 2013).

    For the backward pass only the clamp mask is kept, and with a min-max scale nothing. A scale that requires a gradient
    gets LSQ's (Esser et al. 2020, eq. 3). For this the input is kept:
    ∂x̂/∂s = q − x/s inside the grid and q at its ends.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: Codes, clips: bool) -> Tensor:
        codes = grid.nearest(_at_least_float(x), scale)
        ctx.learned = ctx.needs_input_grad[1]
        ctx.clips = clips and ctx.needs_input_grad[0]
        if ctx.clips or ctx.learned:
            inside = (codes >= grid.low) & (codes <= grid.high)
            codes.clamp_(*grid.ends)
            slope = torch.where(inside, codes - _at_least_float(x) / scale, codes).to(x.dtype) if ctx.learned else None
            ctx.save_for_backward(inside, slope)
            ctx.shape = scale.shape
        else:
            codes.clamp_(*grid.ends)
        return codes.mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grad_outputs
        grad_scale = None
        if ctx.clips or ctx.learned:
            inside, slope = ctx.saved_tensors
        if ctx.learned:
            grad_scale = _at_least_float(grad * slope).sum_to_size(ctx.shape)
        if not ctx.needs_input_grad[0]:
            return None, grad_scale, None, None
        return (grad * inside if ctx.clips else grad), grad_scale, None, None


def fake_quantize(x: Tensor, scale: Tensor, bits: int, grid: Grid = "narrow", *, clips: bool = True) -> Tensor:
    """`dequantize(quantize(x))` to the last bit, in the type of `x`, with a straight-through gradient.

    Args:
        x: any shape, finite.
        scale: broadcastable to `x`; gets a gradient if it requires one.
        clips: whether values of `x` may lie beyond the grid. Pass False with a min-max scale of the same `x`: the result is the
            same, and nothing is kept for the backward pass.

    Returns:
        Same shape and type as `x`. The gradient is 1 inside the grid and 0 where a value was clamped to its end.

    Example:
        >>> x = torch.tensor([0.2, -1.0, 0.9], requires_grad=True)
        >>> scale = minmax_scale(x, bits=4)
        >>> y = fake_quantize(x, scale, bits=4)
        >>> torch.equal(y, dequantize(quantize(x, scale, bits=4), scale))
        True
    """
    result: Tensor = _FakeQuantize.apply(x, scale, codes_of(bits, grid), clips)
    return result


def fake_quantize_dynamic(x: Tensor, bits: int, dims: Dims = -1, grid: Grid = "narrow") -> Tensor:
    """Fake quantization with a min-max scale of `x` itself: `dims=-1` is one scale per token (ZeroQuant, Yao et al. 2022)."""
    return fake_quantize(x, minmax_scale(x, bits, dims, grid), bits, grid, clips=False)


class _QuantizeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = grad_outputs
        scale = minmax_scale(grad, ctx.bits, -1)
        # the ends are codes themselves, so only an error of the division can round beyond them
        grid = codes_of(ctx.bits, "narrow")
        codes = torch.floor(grad / scale + torch.rand_like(grad)).clamp_(*grid.ends)
        return (codes * scale).to(grad.dtype), None


def quantize_gradient(x: Tensor, bits: int) -> Tensor:
    """`x` itself. In the backward pass its gradient is quantized on the narrow grid, with one scale per token.

    Rounding is stochastic: the probability of rounding up is the fraction. So the expectation of the quantized gradient is the
    gradient (Banner et al. 2018, whose quantizer CPT uses for 8-bit gradients).
    """
    result: Tensor = _QuantizeGradient.apply(x, bits)
    return result


class Observer(Protocol):
    """Observes batches of a quantizer's input."""

    def observe(self, x: Tensor) -> None:
        """Take in one batch (…, features)."""


class EMAObserver:
    """Running magnitude of a tensor for a static scale: m ← momentum · m + (1 − momentum) · max|x|.

    The first observation sets m, so there is no start-up bias (otherwise as Jacob et al. 2018, section 3.1).
    """

    def __init__(self, momentum: float = 0.9, absmax: Tensor | None = None) -> None:
        self.momentum, self.absmax = momentum, absmax

    def observe(self, x: Tensor) -> None:
        """Take in one batch, any shape."""
        seen = absmax(x)
        self.absmax = seen if self.absmax is None else torch.lerp(seen, self.absmax, self.momentum)


class ClipObserver:
    """Squared error of per-token quantization at every clipping ratio, summed over what is observed.

    About `SAMPLED` tokens of a batch are used, spread evenly over it.

    Args:
        bits: the activation bit-widths for which ratios are searched.
    """

    SAMPLED = 64

    def __init__(self, bits: Sequence[int], grid: Grid = "narrow") -> None:
        self.grid = grid
        self.errors: dict[int, list[float]] = {b: [0.0] * len(CLIP_RATIOS) for b in bits}

    def observe(self, x: Tensor) -> None:
        """Take in one batch (…, features)."""
        x = x.flatten(0, -2)
        x = x[:: max(1, len(x) // self.SAMPLED)]
        for bits, errors in self.errors.items():
            widest = minmax_scale(x, bits, -1, self.grid)
            for i, ratio in enumerate(CLIP_RATIOS):
                errors[i] += float((fake_quantize(x, widest * ratio, bits, self.grid) - x).float().square().sum())

    def best(self, bits: int) -> float:
        """The ratio of least squared error."""
        errors = self.errors[bits]
        return CLIP_RATIOS[errors.index(min(errors))]


def sqnr_db(x: Tensor, quantized: Tensor) -> float:
    """Signal-to-quantization-noise ratio 10·log10(Σx² / Σ(x − x̂)²) in dB; infinite if nothing changed."""
    noise = (x.double() - quantized.double()).square().sum()
    return float(10 * torch.log10(x.double().square().sum() / noise))


def _at_least_float(x: Tensor) -> Tensor:
    """At least fp32: bf16 and fp16 are not precise enough for 16-bit codes or for a quotient."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
