"""Symmetric integer quantization: codes and scales, clipping, gradients through the rounding, rotation, observers.

A real number x is stored as an integer code q and read back as q · s:

    q = clamp(round(x / s), q_min, q_max),    x̂ = q · s

The scale s comes from the largest magnitude of the group that shares it (min-max, as in LLM-QAT, Liu et al. 2023, eq. 1),
from a search for the least squared error, or is learned (LSQ, Esser et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from qatlib.arguments import Grid

Dims = int | tuple[int, ...] | None
"""The dimensions a scale is shared over; `None` is all of them (per tensor)."""


MIDRISE_BITS = 4
"""The widest midrise grid; with more bits a level at zero costs next to nothing, and codes must fit in a byte."""


def code_range(bits: int, grid: Grid = "narrow") -> tuple[int, int]:
    """Smallest and largest code of a signed grid.

    `narrow` (LLM-QAT): ±(2^(b−1) − 1), symmetric about 0, three levels at 2 bits. `full` (torchao): −2^(b−1) …
    2^(b−1) − 1, one level more on the negative side. `midrise`: the odd numbers from −(2^b − 1) to 2^b − 1, all 2^b
    levels symmetric about a zero that is not among them; up to 4 bits, above it is the narrow grid.

    Raises:
        ValueError: `bits` outside 2..16.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"a grid has 2 to 16 bits, not {bits}")
    if _midrise(bits, grid):
        return 1 - 2**bits, 2**bits - 1
    q_max = 2 ** (bits - 1) - 1
    return (-q_max - 1 if grid == "full" else -q_max), q_max


def _midrise(bits: int, grid: Grid) -> bool:
    return grid == "midrise" and bits <= MIDRISE_BITS


def activation_grid(grid: Grid) -> Grid:
    """The grid of activations beside weights on `grid`.

    Never a midrise one: without a level at zero the many activations near it would all be moved away from it.
    """
    return "narrow" if grid == "midrise" else grid


def code_dtype(bits: int) -> torch.dtype:
    """The integer type codes of that bit-width are kept in."""
    return torch.int8 if bits <= 8 else torch.int16


def absmax(x: Tensor, dims: Dims = None) -> Tensor:
    """Largest magnitude over `dims`, which are kept with size 1 (a scalar for `None`), in at least fp32."""
    x = x.detach()
    if dims is None:
        low, high = torch.aminmax(x)
    else:  # a dimension at a time torch's aminmax is not vectorized on a CPU
        low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    return _at_least_float(torch.maximum(high, -low))


def scale_from_absmax(magnitude: Tensor, bits: int, grid: Grid = "narrow") -> Tensor:
    """The min-max scale: the largest magnitude meets the end of the narrow grid, so nothing is clipped.

    On the full grid it lies half a step beyond the positive end, and is read back as that end.

    Args:
        magnitude: largest magnitude of each group, any shape.

    Returns:
        A positive scale of the same shape; groups of zeros get the smallest normal number, so that 0 / s is 0.
    """
    q_min, q_max = code_range(bits, grid)
    return (magnitude / ((q_max - q_min) / 2)).clamp_min(torch.finfo(magnitude.dtype).tiny)


def minmax_scale(x: Tensor, bits: int, dims: Dims = None, grid: Grid = "narrow") -> Tensor:
    """`scale_from_absmax` of `x` over `dims`; broadcasts against `x`.

    Example:
        >>> minmax_scale(torch.tensor([[0.5, -1.0], [2.0, 7.0]]), 4, dims=1)  # one scale per row
        tensor([[0.1429],
                [1.0000]])
    """
    return scale_from_absmax(absmax(x, dims), bits, grid)


def mse_scale(x: Tensor, bits: int, dims: Dims = None, grid: Grid = "narrow") -> Tensor:
    """The scale of least squared error: the min-max one, shrunk by the best of `CLIP_RATIOS` for each group.

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
"""Shares of the largest magnitude that are tried as the end of the grid."""


def _to_codes(x: Tensor, scale: Tensor, midrise: bool) -> Tensor:
    """The nearest code of an endless grid, as floats."""
    x = _at_least_float(x)
    return (x / (2 * scale)).floor_().mul_(2).add_(1) if midrise else (x / scale).round_()


def quantize(x: Tensor, scale: Tensor, bits: int, grid: Grid = "narrow") -> Tensor:
    """Codes of `x` (any shape) on the grid of `scale` (broadcastable): int8 up to 8 bits, int16 above.

    Rounds half to even (up, on the midrise grid). Values beyond the grid go to its ends. `x` must be finite.

    Example:
        >>> quantize(torch.tensor([0.2, -1.0, 9.0]), torch.tensor(0.25), bits=4)
        tensor([ 1, -4,  7], dtype=torch.int8)
    """
    return _to_codes(x, scale, _midrise(bits, grid)).clamp_(*code_range(bits, grid)).to(code_dtype(bits))


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

    The narrow grid's scale is free, so this is more than cutting low bits off (MatQuant, Nair et al. 2025, has
    s_b = 2^(wide − b) · s); what it costs against quantizing the weights themselves is one more rounding.

    Args:
        codes: (out, in) integers.
        scale, narrow_scale: of the wide and of the narrow grid, both a scalar, (out, 1) or (out, groups, 1).
        bits: the narrow width.

    Returns:
        (out, in), int8 up to 8 bits and int16 above.
    """
    # the quotient of the scales first: where it is a power of two this is exact, ties and all
    ratio = narrow_scale / scale
    return quantize(grouped(codes, ratio), ratio, bits, grid).view(codes.shape)


def grouped(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes (out, in) as (out, groups, in / groups) where the scale is one of groups, so that the two broadcast."""
    return codes.unflatten(1, (scale.shape[1], -1)) if scale.ndim == 3 else codes


class _FakeQuantize(torch.autograd.Function):
    """Round to the grid; the gradient passes straight through where nothing was clamped (Bengio et al. 2013).

    Of the input only the clamp mask is kept for the backward pass, and with a min-max scale not even that. A scale
    that requires a gradient gets the one of LSQ (Esser et al. 2020, eq. 3), for which the input is kept:
    ∂x̂/∂s = q − x/s inside the grid and q at its ends.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, ends: tuple[int, int], midrise: bool, clips: bool) -> Tensor:
        codes = _to_codes(x, scale, midrise)
        ctx.learned = ctx.needs_input_grad[1]
        ctx.clips = clips and ctx.needs_input_grad[0]
        if ctx.clips or ctx.learned:
            inside = (codes >= ends[0]) & (codes <= ends[1])
            codes.clamp_(*ends)
            slope = torch.where(inside, codes - _at_least_float(x) / scale, codes).to(x.dtype) if ctx.learned else None
            ctx.save_for_backward(inside, slope)
            ctx.shape = scale.shape
        else:
            codes.clamp_(*ends)
        return codes.mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (grad,) = grad_outputs
        grad_scale = None
        if ctx.clips or ctx.learned:
            inside, slope = ctx.saved_tensors
        if ctx.learned:
            grad_scale = _at_least_float(grad * slope).sum_to_size(ctx.shape)
        if not ctx.needs_input_grad[0]:
            return None, grad_scale, None, None, None
        return (grad * inside if ctx.clips else grad), grad_scale, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, bits: int, grid: Grid = "narrow", *, clips: bool = True) -> Tensor:
    """`dequantize(quantize(x))` to the last bit, in the type of `x`, with a straight-through gradient.

    Args:
        x: any shape, finite.
        scale: broadcastable to `x`; gets a gradient where it requires one.
        clips: whether some of `x` may lie beyond the grid. Pass False with a min-max scale of the same `x`:
            the result is the same and the backward pass keeps nothing.

    Returns:
        Same shape and type as `x`. The gradient is 1 inside the grid and 0 where a value was clamped to its end.

    Example:
        >>> x = torch.tensor([0.2, -1.0, 0.9], requires_grad=True)
        >>> scale = minmax_scale(x, bits=4)
        >>> y = fake_quantize(x, scale, bits=4)
        >>> torch.equal(y, dequantize(quantize(x, scale, bits=4), scale))
        True
    """
    result: Tensor = _FakeQuantize.apply(x, scale, code_range(bits, grid), _midrise(bits, grid), clips)
    return result


def fake_quantize_dynamic(x: Tensor, bits: int, dims: Dims = -1, grid: Grid = "narrow") -> Tensor:
    """Fake quantization with a min-max scale of `x` itself: `dims=-1` is one scale a token (ZeroQuant, Yao et al. 2022)."""
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
        # the ends are codes themselves, so nothing rounds beyond them but by an error of the division
        low, high = code_range(ctx.bits)
        codes = torch.floor(grad / scale + torch.rand_like(grad)).clamp_(low, high)
        return (codes * scale).to(grad.dtype), None


def quantize_gradient(x: Tensor, bits: int) -> Tensor:
    """`x` itself; its gradient is quantized on the narrow grid, one scale a token, on the way back.

    Rounding is stochastic, up with the probability of the fraction, so that the quantized gradient's expectation is the
    gradient (Banner et al. 2018, on whose quantizer CPT's 8-bit gradients rest).
    """
    result: Tensor = _QuantizeGradient.apply(x, bits)
    return result


@lru_cache
def hadamard(n: int) -> Tensor:
    """The symmetric orthogonal (n, n) matrix of ±1/√n (Sylvester 1867), n a power of two; it is its own inverse."""
    with torch.inference_mode(False):  # it is kept, and trainings need it as well
        h = torch.ones(1, 1)
        while len(h) < n:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
        return h / n**0.5


def rotate(x: Tensor) -> Tensor:
    """Rotate the last dimension by a block-diagonal Hadamard matrix, which spreads outliers over their block.

    A block has the largest power of two that divides the dimension, 64 at most, so that the rotation costs little
    beside the product that follows. Rotating twice gives `x` back, and ⟨rotate(x), rotate(w)⟩ = ⟨x, w⟩, so that a
    layer computes the same while what is quantized has no outliers (QuIP#, Tseng et al. 2024; QuaRot, Ashkboos et al. 2024).
    """
    n = min(x.shape[-1] & -x.shape[-1], ROTATION_BLOCK)
    return (x.unflatten(-1, (-1, n)) @ hadamard(n).to(x)).flatten(-2)


ROTATION_BLOCK = 64
"""Largest block of `rotate`."""


class Observer(Protocol):
    """Takes in batches of what a quantizer is given."""

    def observe(self, x: Tensor) -> None:
        """Take in one batch (…, features)."""


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


class ClipObserver:
    """Squared error of per-token quantization at every clipping ratio, summed over what is observed.

    Of a batch some `SAMPLED` tokens are looked at, spread evenly over it.

    Args:
        bits: the activation bit-widths that ratios are sought for.
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
    """Signal-to-quantization-noise ratio 10·log10(Σx² / Σ(x − x̂)²) in dB; infinite where nothing changed."""
    noise = (x.double() - quantized.double()).square().sum()
    return float(10 * torch.log10(x.double().square().sum() / noise))


def _at_least_float(x: Tensor) -> Tensor:
    """bf16 and fp16 hold neither 16-bit codes nor a quotient well enough: arithmetic is in fp32 for those."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
