"""Codes of a frozen weight that compensate their own rounding error, from second moments of the layer's inputs.

Rounding to nearest makes each weight's error small. What matters is the error of the output, ‖(W − Ŵ) X‖², which is
tr (W − Ŵ) G (W − Ŵ)ᵀ with the Gram matrix G = X Xᵀ of calibration inputs X. Rows of W are independent of one another.

1. GPTQ (Frantar et al. 2023) rounds one input after the other. Weights that are not rounded yet take up the error.
2. Coordinate descent (QuantEase, Behdin et al. 2023) then rounds each weight again, at its optimum while all others are fixed.
   No step can make the error larger.

G comes from the model at full precision. So the codes of a layer do not depend on the widths of other layers, and any mixed
configuration can use them. (Methods that correct the error of earlier layers, such as Qronos, give codes for one configuration.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qatlib.arguments import Grid
from qatlib.grids import Codes, code_dtype, codes_of
from qatlib.quantizer import quantize

DAMPING = 0.01
"""What is added to the diagonal of the Gram matrix, as a share of its mean. It makes few calibration inputs enough."""

SWEEPS = 4
"""Rounds of coordinate descent."""

_BLOCK = 64
"""Inputs that are rounded between two matrix products."""


class GramObserver:
    """Sum of x xᵀ over the observed tokens: (features, features), fp32."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        """Take in one batch (…, features)."""
        x = x.detach().flatten(0, -2).float()
        self.gram = x.t() @ x if self.gram is None else self.gram.addmm_(x.t(), x)


def output_error(weight: Tensor, other: Tensor, gram: Tensor) -> Tensor:
    """Squared error of each output over the calibration inputs, (out,), if `other` replaces `weight` (out, in)."""
    difference = (weight - other).double()
    return (difference @ gram.double() * difference).sum(1)


@torch.no_grad()
def compensated(
    weight: Tensor, gram: Tensor, scales: Mapping[int, Tensor], grid: Grid, sweeps: int = SWEEPS
) -> dict[int, Tensor]:
    """Codes of a weight at several bit-widths.

    Args:
        weight: (out, in), in the basis that it is quantized in.
        gram: (in, in), from inputs in the same basis.
        scales: by bit-width, as `WeightQuantizer.scale`. They are not changed.

    Returns:
        By bit-width, codes (out, in). No output has a larger calibrated error than with codes rounded to nearest.
    """
    out = len(weight)
    damped = _damped(gram)
    problem = _Problem([codes_of(bits, grid) for bits in scales], [_full_size(scale, weight) for scale in scales.values()])
    target = weight.float().t().repeat(1, len(scales))  # (in, widths · out): one row per input
    nearest = torch.cat(
        [quantize(target[:, :out], s, bits, grid).float() for bits, s in zip(scales, problem.scales, strict=True)], 1
    )
    found = problem.descended(target, _gptq(target, damped, problem), damped, sweeps)
    worse = problem.errors(target, found, damped) > problem.errors(target, nearest, damped)
    if worse.any():
        found[:, worse] = problem.descended(target, nearest, damped, sweeps)[:, worse]
    parts = found.split(out, 1)
    return {bits: codes.t().contiguous().to(code_dtype(bits)) for bits, codes in zip(scales, parts, strict=True)}


def _full_size(scale: Tensor, weight: Tensor) -> Tensor:
    """The scale of each weight, transposed: (in, out)."""
    size = weight.shape[1] // (scale.shape[1] if scale.ndim == 3 else 1)
    each = scale.squeeze(-1).repeat_interleave(size, 1) if scale.ndim == 3 else scale.expand(weight.shape)
    return each.t().contiguous()


def _damped(gram: Tensor) -> Tensor:
    mean = gram.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return gram.double() + DAMPING * mean.double() * torch.eye(len(gram), dtype=torch.float64, device=gram.device)


class _Problem:
    """Several grids beside one another: columns are the outputs of the first width, then of the second, and so on."""

    def __init__(self, grids: list[Codes], scales: list[Tensor]) -> None:
        self.grids, self.scales = grids, scales
        self.scale = torch.cat(scales, 1)

    def rounded(self, row: Tensor, i: int) -> Tensor:
        """The codes of one input's weights."""
        scale = self.scale[i]
        parts = zip(self.grids, row.chunk(len(self.grids)), scale.chunk(len(self.grids)), strict=True)
        return torch.cat([g.nearest(part, s).clamp_(*g.ends) for g, part, s in parts])

    def errors(self, target: Tensor, codes: Tensor, gram: Tensor) -> Tensor:
        return output_error(target.t(), (codes * self.scale).t(), gram)

    def descended(self, target: Tensor, codes: Tensor, gram: Tensor, sweeps: int) -> Tensor:
        """Codes after coordinate descent."""
        codes, g = codes.clone(), gram.float()
        diagonal = g.diagonal()
        for _ in range(sweeps):
            left = g @ (target - codes * self.scale)  # the negative gradient of half the error
            changed = False
            for start in range(0, len(codes), _BLOCK):
                span = slice(start, min(start + _BLOCK, len(codes)))
                moved = torch.zeros_like(codes[span])
                for k, i in enumerate(range(span.start, span.stop)):
                    here = codes[i] * self.scale[i]
                    codes[i] = self.rounded(here + left[i] / diagonal[i], i)
                    moved[k] = codes[i] * self.scale[i] - here
                    left[span][k + 1 :].addr_(g[i, i + 1 : span.stop], moved[k], alpha=-1)
                left[span.stop :].addmm_(g[span.stop :, span], moved, alpha=-1)
                changed = changed or bool(moved.any())
            if not changed:
                break
        return codes


def _gptq(target: Tensor, gram: Tensor, problem: _Problem) -> Tensor:
    order = gram.diagonal().argsort(descending=True, stable=True)
    left, codes = target[order], torch.empty_like(target)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    for start in range(0, len(left), _BLOCK):
        span = slice(start, min(start + _BLOCK, len(left)))
        errors = torch.empty_like(left[span])
        for k, i in enumerate(range(span.start, span.stop)):
            at = int(order[i])
            codes[at] = problem.rounded(left[i], at)
            errors[k] = (left[i] - codes[at] * problem.scale[at]) / upper[i, i]
            left[span][k + 1 :].addr_(upper[i, i + 1 : span.stop], errors[k], alpha=-1)
        left[span.stop :].addmm_(upper[span, span.stop :].t(), errors, alpha=-1)
    return codes


@torch.no_grad()
def low_rank_correction(error: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors A (rank, in) and B (out, rank) that leave the least ‖(E − B A) X‖² (QERA, Zhang et al. 2024, theorem 2).

    With the eigenvectors U of E G Eᵀ that have the `rank` largest eigenvalues, B A = U Uᵀ E. A and B share the scale evenly.

    Args:
        error: E (out, in), what quantization took from the weight, in the basis of the inputs.
        gram: G (in, in), as in `compensated`.

    Raises:
        ValueError: `rank` is larger than a side of the error.
    """
    if not 1 <= rank <= min(error.shape):
        raise ValueError(f"a correction of a {tuple(error.shape)} error has rank 1 to {min(error.shape)}, not {rank}")
    e = error.double()
    _, vectors = torch.linalg.eigh(e @ _damped(gram) @ e.t())
    up = vectors[:, -rank:]
    down = up.t() @ e
    size = down.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    return (down / size).to(error.dtype), (up * size.t()).to(error.dtype)
