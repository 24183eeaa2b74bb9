"""Grids of integer codes. One object describes each: its codes at a bit-width, their scale, rounding and storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qatlib.arguments import Grid

MIDRISE_BITS = 4
"""The widest midrise grid. With more bits a level at zero costs almost nothing, and codes must fit in a byte."""


@dataclass(frozen=True)
class Codes:
    """The codes of one grid at one bit-width: the integers from `low` to `high`, or only the odd ones of them."""

    low: int
    high: int
    odd: bool = False

    @property
    def ends(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return self.low, self.high

    def scale(self, magnitude: Tensor) -> Tensor:
        """The min-max scale of groups, from their largest magnitudes; the shape is the same.

        Groups of zeros get the smallest normal number, so that 0 / s is 0.
        """
        return (magnitude / ((self.high - self.low) / 2)).clamp_min(torch.finfo(magnitude.dtype).tiny)

    def nearest(self, x: Tensor, scale: Tensor) -> Tensor:
        """The nearest code of an unbounded grid, as floats. Ties go to the even code, or up if all codes are odd."""
        return (x / (2 * scale)).floor_().mul_(2).add_(1) if self.odd else (x / scale).round_()

    def ranks(self, codes: Tensor) -> Tensor:
        """The codes as consecutive integers around zero that fit the bit-width: the odd code 2k + 1 becomes k."""
        return codes >> 1 if self.odd else codes

    def of_ranks(self, ranks: Tensor) -> Tensor:
        """The inverse of `ranks`."""
        return 2 * ranks + 1 if self.odd else ranks


@dataclass(frozen=True)
class GridRule:
    """One grid.

    Attributes:
        codes: a bit-width, 2..16 → its codes.
        activations: the grid of activations when weights are on this grid.
    """

    codes: Callable[[int], Codes]
    activations: Grid


def _narrow(bits: int) -> Codes:
    """LLM-QAT's: symmetric about 0, three levels at 2 bits."""
    return Codes(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)


def _full(bits: int) -> Codes:
    """torchao's: one more level on the negative side. With min-max, the positive end is half a step beyond the last code."""
    return Codes(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _midrise(bits: int) -> Codes:
    """All 2^b levels, symmetric about a zero that is not among them; above `MIDRISE_BITS` it is the narrow grid."""
    return Codes(1 - 2**bits, 2**bits - 1, odd=True) if bits <= MIDRISE_BITS else _narrow(bits)


GRIDS: Mapping[Grid, GridRule] = {
    "narrow": GridRule(_narrow, activations="narrow"),
    "full": GridRule(_full, activations="full"),
    # without a level at zero, the many activations near zero would all be moved away from it
    "midrise": GridRule(_midrise, activations="narrow"),
}
"""The grids by the name in `QuantizerArguments.grid`. A new grid needs an entry here and its name in `arguments.Grid`."""


def codes_of(bits: int, grid: Grid) -> Codes:
    """The codes of a grid at a bit-width.

    Raises:
        ValueError: `bits` outside 2..16, or no grid of that name.
    """
    if grid not in GRIDS:
        raise ValueError(f"the grid is {grid!r}; allowed are {', '.join(GRIDS)}")
    if not 2 <= bits <= 16:
        raise ValueError(f"a grid has 2 to 16 bits, not {bits}")
    return GRIDS[grid].codes(bits)


def code_dtype(bits: int) -> torch.dtype:
    """The integer type in which codes of that bit-width are stored."""
    return torch.int8 if bits <= 8 else torch.int16
