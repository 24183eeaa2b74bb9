"""The product of a quantized layer. Simulation and deployment compute it in the same order of steps.

With codes c = round(x / s_x) of the input, C of the weight, and an adapter (A, B):

    y = s_x · Σ_groups s_W · (c Cᵀ) + [s_x · (c Aᵀ), 1] · [B, b]ᵀ

The sums of products of codes are integers. An integer kernel computes them exactly. A float kernel does too, since fp32 holds
every integer up to 2²⁴. The sums are scaled afterwards. So both kernels give the same floats to the last bit. (Products of
dequantized codes would differ: a difference in the last bit can change a code of the next layer by a whole level.)
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from qatlib.arguments import QuantizerArguments
from qatlib.grids import GRIDS, codes_of
from qatlib.kernels import CodeMatrix, FloatCodes, three_digits
from qatlib.quantizer import minmax_scale, scale_from_absmax
from qatlib.rotation import ROTATIONS

CODE_BITS = 8
"""The widest codes that are multiplied as codes. Wider ones are dequantized and multiplied as floats."""

_BLOCK = 2**18
"""Elements per block of element-wise steps: a megabyte of fp32 stays in the cache between the steps."""

_FEW_TOKENS = 64
"""Below this, an adapter's product with floats is faster than the product with digits."""


class AdapterFactors:
    """A LoRA adapter's two factors, laid out for a product with codes.

    The first factor is also stored as digits, so that it multiplies the codes of the layer's input. The second is transposed,
    with the layer's bias as a last row, so that both are added in one pass.

    Args:
        lora_A: (rank, in), including the adapter's scaling.
        lora_B: (out, rank).
        kind: the kernel that multiplies codes.
    """

    def __init__(self, lora_A: Tensor, lora_B: Tensor, bias: Tensor | None, kind: type[CodeMatrix | FloatCodes]) -> None:
        self.lora_A, self.lora_B, self._kind = lora_A.contiguous(), lora_B.contiguous(), kind
        self.up = torch.cat([lora_B.t(), lora_B.new_zeros(1, len(lora_B)) if bias is None else bias[None]])

    @cached_property
    def _digits(self) -> CodeMatrix | FloatCodes:
        return self._kind(*three_digits(self.lora_A))

    def down(self, codes: Tensor, scale: Tensor) -> Tensor:
        """(tokens, in) codes and (tokens, 1) → (tokens, rank + 1), fp32, the last column of ones."""
        if len(codes) < _FEW_TOKENS:
            low = F.linear(codes.float(), self.lora_A)
        else:
            low = self._digits.matmul(codes).view(len(codes), 3, -1).sum(1)
        return F.pad(low.mul_(scale), (0, 1), value=1.0)


class InputQuantizer:
    """How a layer's input becomes codes: basis, grid and scale.

    Args:
        clip: share of a token's largest magnitude at which the grid ends; by default 1.
        absmax: the magnitude of static scales, if the quantizer has static scales.
    """

    def __init__(self, bits: int, quantizer: QuantizerArguments, clip: Tensor | None, absmax: Tensor | None) -> None:
        self.bits, self.grid = bits, GRIDS[quantizer.grid].activations
        self.rotation, self._per_token = ROTATIONS[quantizer.rotation], quantizer.activations == "per_token"
        self.clip, self._absmax = clip, absmax

    def scale(self, x: Tensor) -> Tensor:
        """The scale of `x` (…, in) in the quantizer's basis: (…, 1), or a scalar if scales are static.

        Raises:
            RuntimeError: scales are static, and there was no calibration pass.
        """
        if self._per_token:
            scale = minmax_scale(x, self.bits, -1, self.grid)
            return scale if self.clip is None else scale * self.clip
        if self._absmax is None:
            raise RuntimeError(
                "static activation scales need a calibration pass before a model is deployed: qatlib.qa.calibration.calibrate"
            )
        return scale_from_absmax(self._absmax, self.bits, self.grid)

    def codes(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`quantize` with that scale, to the last bit, block by block: `x` (tokens, in) → codes (tokens, in), (tokens, 1)."""
        grid = codes_of(self.bits, self.grid)
        codes, scale = torch.empty_like(x, dtype=dtype), torch.empty(len(x), 1, device=x.device)
        for rows in _blocks(x):
            scale[rows] = self.scale(x[rows])
            codes[rows] = grid.nearest(x[rows], scale[rows]).clamp_(*grid.ends)
        return codes, scale


def code_product(
    x: Tensor,
    quantizer: InputQuantizer,
    matrix: CodeMatrix | FloatCodes,
    adapter: AdapterFactors | None,
    bias: Tensor | None,
) -> Tensor:
    """`x` (tokens, in) fp32 → (tokens, out) fp32, as the module's formula says."""
    codes, scale = quantizer.codes(x, matrix.dtype)
    y = matrix.matmul(codes)
    low = None if adapter is None else adapter.down(codes, scale)
    for rows in _blocks(y):
        part = y[rows].mul_(scale[rows])
        if adapter is not None and low is not None:
            part.addmm_(low[rows], adapter.up)
        elif bias is not None:
            part.add_(bias)
    return y


def _blocks(x: Tensor) -> list[slice]:
    """Slices of the rows of (rows, columns), processed one after the other. On a GPU there is one slice."""
    size = len(x) if x.is_cuda else max(1, _BLOCK // x.shape[1])
    return [slice(start, start + size) for start in range(0, len(x), max(1, size))]
