"""Rotations of the basis that a layer's inputs and weights are quantized in, each with its inverse.

A rotation R is orthogonal, so ⟨R(x), R(w)⟩ = ⟨x, w⟩: a layer computes the same, but the quantized tensors have no outliers
(QuIP#, Tseng et al. 2024; QuaRot, Ashkboos et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from qatlib.arguments import RotationName

ROTATION_BLOCK = 64
"""Largest block of the rotation `block`."""

LARGEST_ORDER = 256
"""Largest factor of the rotation `hadamard`. A larger one would cost as much as the product that follows."""


@lru_cache
def hadamard(n: int) -> Tensor:
    """An orthogonal (n, n) matrix of ±1/√n. For a power of two it is symmetric, for other orders it is not.

    Orders are doubled (Sylvester 1867). The orders q + 1 and 2 (q + 1) with a prime q are Paley's (1933).

    Raises:
        ValueError: none of these constructions gives the order, 6 or 92 for example.
    """
    if not has_hadamard(n):
        raise ValueError(f"no construction here gives a Hadamard matrix of order {n}")
    with torch.inference_mode(False):  # it is cached, and trainings need it too
        return _signs(n) / n**0.5


def has_hadamard(n: int) -> bool:
    """Whether `hadamard` knows this order."""
    return n == 1 or (n > 1 and n % 2 == 0 and (has_hadamard(n // 2) or _is_prime(n - 1, 3) or _is_prime(n // 2 - 1, 1)))


def _is_prime(q: int, remainder: int) -> bool:
    """Whether q is a prime that leaves this remainder modulo 4."""
    return q > 2 and q % 4 == remainder and all(q % d for d in range(3, int(q**0.5) + 1, 2))


def _signs(n: int) -> Tensor:
    doubling = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    if n == 1:
        return torch.ones(1, 1)
    if has_hadamard(n // 2):
        return torch.kron(doubling, _signs(n // 2))
    if _is_prime(n - 1, 3):
        return torch.eye(n) + _bordered(n - 1, sign=-1)
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(_bordered(n // 2 - 1, sign=1), doubling) + torch.kron(torch.eye(n // 2), diagonal)


def _bordered(q: int, sign: int) -> Tensor:
    """Paley's conference matrix of order q + 1: quadratic residues of i − j, with a border of ones (`sign` on the left)."""
    squares = {i * i % q for i in range(1, q)}
    residues = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    bordered = torch.ones(q + 1, q + 1)
    bordered[0, 0], bordered[1:, 0] = 0, sign
    bordered[1:, 1:] = residues[(torch.arange(q)[:, None] - torch.arange(q)) % q]
    return bordered


@lru_cache
def factors(width: int) -> tuple[int, int]:
    """Orders (a, b) of the two Hadamard matrices whose Kronecker product rotates the largest share of a width.

    Their product divides the width. If it is smaller, the width is rotated in blocks of that size. Of equal products the cheapest
    is chosen: a + b multiplications per element, and a second factor costs another pass, about as much as 64 of them.
    """
    orders = [n for n in range(1, min(width, LARGEST_ORDER) + 1) if width % n == 0 and has_hadamard(n)]
    pairs = [(a, b) for a in orders for b in orders if a <= b and width % (a * b) == 0]
    return max(pairs, key=lambda pair: (pair[0] * pair[1], -sum(pair) - 64 * (pair[0] > 1)))


def block_factors(width: int) -> tuple[int, int]:
    """As `factors`, for blocks of the largest power of two that divides the width, at most `ROTATION_BLOCK`."""
    return 1, min(width & -width, ROTATION_BLOCK)


class _Rotate(torch.autograd.Function):
    """Multiply the last dimension, as rows of a times b elements, by the Kronecker product, or by its transpose.

    The gradient is rotated the other way. Nothing is kept for that.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, orders: tuple[int, int], back: bool) -> Tensor:
        ctx.orders, ctx.back = orders, back
        a, b = orders
        left, right = (_factor(n, x.device, x.dtype) for n in orders)
        y = x.unflatten(-1, (-1, b)) @ (right.t() if back else right)
        if a > 1:
            y = (left if back else left.t()) @ y.unflatten(-2, (-1, a))
        return y.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grad_outputs
        return _Rotate.apply(grad, ctx.orders, not ctx.back), None, None


def _rotated(x: Tensor, orders: Callable[[int], tuple[int, int]], back: bool = False) -> Tensor:
    result: Tensor = _Rotate.apply(x, orders(x.shape[-1]), back)
    return result


@lru_cache
def _factor(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return hadamard(n).to(device, dtype)


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Rotation:
    """An orthogonal map of the last dimension.

    Attributes:
        apply: (…, features) → (…, features).
        inverse: undoes `apply`.
    """

    apply: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]

    @property
    def rotates(self) -> bool:
        """Whether it changes anything."""
        return self.apply is not _unchanged


def _of(orders: Callable[[int], tuple[int, int]]) -> Rotation:
    return Rotation(partial(_rotated, orders=orders), inverse=partial(_rotated, orders=orders, back=True))


ROTATIONS: Mapping[RotationName, Rotation] = {
    "none": Rotation(_unchanged, _unchanged),
    "block": _of(block_factors),
    "hadamard": _of(factors),
}
"""The rotations by the name in `QuantizerArguments.rotation`. A new one needs an entry here and in `arguments.RotationName`."""
