"""Every grid: as many codes as its bits can tell apart, scaled to what they are for, stored and read back."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from qatlib.arguments import Grid
from qatlib.grids import GRIDS, code_dtype, codes_of

EVERY = pytest.mark.parametrize("grid", GRIDS)


def test_every_name_has_a_grid_and_activations_one_with_a_zero():
    assert set(GRIDS) == set(get_args(Grid))
    assert not any(codes_of(bits, rule.activations).odd for rule in GRIDS.values() for bits in range(2, 17))


def levels(bits: int, grid: Grid) -> torch.Tensor:
    codes = codes_of(bits, grid)
    return torch.arange(codes.low, codes.high + 1, 2 if codes.odd else 1, dtype=code_dtype(bits))


@EVERY
@pytest.mark.parametrize("bits", range(2, 17))
def test_ranks_fit_the_bits_and_give_the_codes_back(grid, bits):
    codes, every = codes_of(bits, grid), levels(bits, grid)
    ranks = codes.ranks(every)
    assert len(every) in (2**bits - 1, 2**bits) and ranks.dtype == every.dtype == codes.of_ranks(ranks).dtype
    assert -(2 ** (bits - 1)) <= int(ranks.min()) and int(ranks.max()) < 2 ** (bits - 1) and bool((ranks.diff() == 1).all())
    assert torch.equal(codes.of_ranks(ranks), every)


@EVERY
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_their_own_nearest_and_min_max_reaches_over_all_of_them(grid, bits):
    codes, every = codes_of(bits, grid), levels(bits, grid).double()
    assert torch.equal(codes.nearest(every * 0.3, torch.tensor(0.3).double()), every)
    span = (every.max() - every.min()) * codes.scale(torch.tensor(5.0))
    assert float(span) == pytest.approx(10)


@pytest.mark.parametrize("bits", [0, 1, 17, 32, -4])
def test_bit_widths_without_a_grid_are_refused(bits):
    with pytest.raises(ValueError, match=f"2 to 16 bits, not {bits}"):
        codes_of(bits, "narrow")


def test_an_unknown_grid_is_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="the grid is 'wide'; allowed are narrow, full, midrise"):
        codes_of(4, "wide")  # type: ignore[arg-type]
