"""Codes packed to their real width, and narrow codes from wide ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib.grids import code_dtype, codes_of
from qatlib.packing import pack, packed_bytes, unpack


@given(bits=st.integers(2, 16), data=st.data())
@settings(max_examples=200, deadline=None)
def test_unpacking_gives_back_what_was_packed_in_as_many_bits_as_it_takes(bits, data):
    low, high = codes_of(bits, "full").ends
    codes = torch.tensor(data.draw(st.lists(st.integers(low, high), max_size=40)), dtype=code_dtype(bits))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and len(packed) == packed_bytes(len(codes), bits)
    assert len(packed) * 8 < len(codes) * bits + 8 * bits
    assert torch.equal(unpack(packed, bits, tuple(codes.shape)), codes)


def test_shapes_and_strides_do_not_matter():
    codes = torch.arange(-32, 31, dtype=torch.int8).view(9, 7).t()
    assert torch.equal(unpack(pack(codes, 6), 6, (7, 9)), codes)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="codes from -3 to 4 do not fit 3 bits"):
        pack(torch.tensor([-3, 4]), 3)
    with pytest.raises(ValueError, match="3 bytes are not 7 codes of 4 bits, which take 4"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, (7,))
