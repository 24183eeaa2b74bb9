"""Products of codes: exact integer sums, scaled to floats once. Integer matrix kernels or float kernels compute them.

On a CPU the integer kernel is oneDNN's int8 product (AVX512-VNNI, AMX), by the operator that inductor calls. It writes
scaled floats directly. With 2,640 tokens and GPT-2's shapes it took a third of the time of `torch._int_mm`. (That
operator's prepacked layout is up to a third faster below 200 tokens but half as fast above 1,000. So the matrix stays in
plain layout.) On other devices the kernel is `torch._int_mm`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class CodeMatrix:
    """An int8 code matrix (out, in) with its scales, laid out for the integer kernel of its device.

    Args:
        codes: (out, in) int8.
        scale: a scalar, (out, 1), or (out, groups, 1) for `groups` equal runs of input columns.
    """

    dtype = torch.int8
    """Of the codes that it is multiplied with."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.device = codes.device
        self._parts = [_Part(*pair) for pair in _by_group(codes, scale)]

    def matmul(self, x: Tensor) -> Tensor:
        """Σ over groups of scale · (x Cᵀ): int8 codes `x` (tokens, in) → fp32 (tokens, out)."""
        return _sum_of_products(self._parts, x)

    @property
    def codes(self) -> Tensor:
        """The codes (out, in) int8 in plain layout."""
        return torch.cat([part.codes for part in self._parts], 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes in memory, without scales."""
        return sum(part.matrix.nbytes for part in self._parts)


class FloatCodes:
    """The results of a `CodeMatrix` by the float kernel: the same floats to the last bit, on every device.

    It is exact if no sum exceeds 2²⁴. At 8 bits, only more than 1,040 products of the largest codes with one sign exceed it.

    Args:
        codes: (out, in) integers of at most 8 bits.
        scale: as for `CodeMatrix`.
    """

    dtype = torch.float32
    """Of the codes that it is multiplied with."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self._parts = [_FloatPart(part.float(), own) for part, own in _by_group(codes, scale)]

    def matmul(self, x: Tensor) -> Tensor:
        """As `CodeMatrix.matmul`, with codes stored as floats."""
        return _sum_of_products(self._parts, x)


@dataclass(frozen=True)
class _FloatPart:
    codes: Tensor
    scale: Tensor

    def matmul(self, x: Tensor) -> Tensor:
        return F.linear(x, self.codes).mul_(self.scale)


def _by_group(codes: Tensor, scale: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The input columns of each group and their scale for each output."""
    groups = scale.shape[1] if scale.ndim == 3 else 1
    scales = scale.reshape(-1, groups).expand(len(codes), groups).float()
    return zip(codes.chunk(groups, 1), scales.unbind(1), strict=True)


def _sum_of_products(parts: Sequence[_Part | _FloatPart], x: Tensor) -> Tensor:
    products = (part.matmul(columns) for part, columns in zip(parts, x.chunk(len(parts), 1), strict=True))
    y = next(products)
    for product in products:
        y += product
    return y


class _Part:
    """The input columns of one group: one scale for each output."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.shape, self.scale = codes.shape, scale.contiguous()
        self.onednn = codes.device.type == "cpu" and has_onednn()
        if self.onednn:
            self.matrix = codes.t().contiguous().to_mkldnn()
            self._no_zero_points = torch.empty(0, dtype=torch.int64)
        else:
            self.matrix = _padded(codes, 1, 8, 8)

    @property
    def codes(self) -> Tensor:
        if self.onednn:
            return self.matrix.to_dense().t()
        return self.matrix[: self.shape[0], : self.shape[1]]

    def matmul(self, x: Tensor) -> Tensor:
        if self.onednn:
            operands = x, 1.0, 0, self.matrix, self.scale, self._no_zero_points
            y: Tensor = torch.ops.onednn.qlinear_pointwise(*operands, None, 1.0, 0, torch.float32, "none", [], "")
            return y
        sums = torch._int_mm(_padded(x, 17, 1, 8), self.matrix.t())
        return sums[: len(x), : self.shape[0]] * self.scale


def _padded(codes: Tensor, least_rows: int, row_multiple: int, column_multiple: int) -> Tensor:
    """Pad with rows and columns of zeros, which change no sum. CUDA's kernel needs multiples of 8 for K and N, and M > 16."""
    rows, columns = codes.shape
    more = max(least_rows - rows, -rows % row_multiple), -columns % column_multiple
    return F.pad(codes, (0, more[1], 0, more[0])) if any(more) else codes.contiguous()


def three_digits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A float matrix as codes for the integer kernel, without loss: three digits to base 254, most significant first.

    Returns:
        Codes (3 · out, in) int8 and scale (3 · out, 1) fp32. The three dequantized blocks of rows add up to `weight` within
        2⁻²⁴ of each row's largest magnitude, which is fp32's own precision (or, for numbers as small, the smallest normal one).
    """
    rest = weight.double()
    scale = rest.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
    digits, scales = [], []
    for _ in range(3):
        digits.append(torch.round(rest / scale))
        scales.append(scale)
        rest, scale = rest - digits[-1] * scale, scale / 254
    return torch.cat(digits).to(torch.int8), torch.cat(scales).float()


@functools.cache
def has_onednn() -> bool:
    """Whether this build of torch has oneDNN's int8 product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


@functools.cache
def is_exact(device: torch.device) -> bool:
    """Whether the integer kernel is exact for the largest sums.

    x86 processors without VNNI add pairs of products in 16 bits, which saturate.
    """
    x = torch.full((32, 256), 127, dtype=torch.int8, device=device)
    matrix = CodeMatrix(x[:8], torch.ones((), device=device))
    return bool((matrix.matmul(x) == 127 * 127 * 256).all() and (matrix.matmul(-x) == -127 * 127 * 256).all())


def exact_kernel(device: torch.device) -> type[CodeMatrix | FloatCodes]:
    """The kernel for codes on this device: the integer kernel if its sums are exact, else the float kernel."""
    return CodeMatrix if is_exact(device) else FloatCodes
