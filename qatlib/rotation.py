"""Rotations of the basis that a layer's inputs and weights are quantized in, each beside its inverse.

A rotation R is orthogonal, so ⟨R(x), R(w)⟩ = ⟨x, w⟩: a layer computes the same, but the quantized tensors have no outliers
(QuIP#, Tseng et al. 2024; QuaRot, Ashkboos et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qatlib.arguments import RotationName

ROTATION_BLOCK = 64
"""Largest block of `hadamard_blocks`."""


@lru_cache
def hadamard(n: int) -> Tensor:
    """The symmetric orthogonal (n, n) matrix of ±1/√n (Sylvester 1867), n a power of two; it is its own inverse."""
    with torch.inference_mode(False):  # it is cached, and trainings need it too
        h = torch.ones(1, 1)
        while len(h) < n:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
        return h / n**0.5


def hadamard_blocks(x: Tensor) -> Tensor:
    """Rotate the last dimension by a block-diagonal Hadamard matrix, which spreads outliers over their block.

    The block size is the largest power of two that divides the dimension, at most 64. So the rotation is cheap compared with the
    product that follows.
    """
    n = min(x.shape[-1] & -x.shape[-1], ROTATION_BLOCK)
    return (x.unflatten(-1, (-1, n)) @ hadamard(n).to(x)).flatten(-2)


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


ROTATIONS: Mapping[RotationName, Rotation] = {
    "none": Rotation(_unchanged, _unchanged),
    "hadamard": Rotation(hadamard_blocks, inverse=hadamard_blocks),
}
"""The rotations by the name in `QuantizerArguments.rotation`. A new one needs an entry here and in `arguments.RotationName`."""
