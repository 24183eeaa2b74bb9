"""Integer products are exact, whatever kernel makes them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib import kernels
from qatlib.kernels import CodeMatrix, FloatCodes, is_exact, three_digits

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(params=["onednn", "int_mm"])
def kernel(request, monkeypatch):
    """Both kernels that a CPU has."""
    if request.param == "onednn" and not kernels.has_onednn():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(kernels, "has_onednn", lambda: request.param == "onednn")


def codes(rows: int, columns: int, seed: int = 0, device: str = "cpu") -> torch.Tensor:
    shape, generator = (rows, columns), torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 12, 20), (3, 33, 7), (17, 768, 48), (40, 8, 8), (0, 8, 8)])
def test_products_are_the_scaled_integer_sums(tokens, inputs, outputs, device, kernel):
    matrix, x, scale = (
        codes(outputs, inputs, device=device),
        codes(tokens, inputs, 1, device),
        torch.rand(outputs, 1, device=device),
    )
    sums = (x.cpu().long() @ matrix.cpu().long().t()).float().to(device)
    packed = CodeMatrix(matrix, scale)
    assert torch.equal(packed.matmul(x), sums * scale.t())
    assert torch.equal(CodeMatrix(matrix, scale[0, 0]).matmul(x), sums * scale[0, 0])
    assert torch.equal(packed.codes, matrix) and packed.nbytes >= matrix.nbytes
    assert torch.equal(FloatCodes(matrix, scale).matmul(x.float()), packed.matmul(x))


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_inputs_are_scaled_each_by_its_own(groups, kernel):
    matrix, x, scale = codes(20, 32), codes(9, 32, 1), torch.rand(20, groups, 1)
    dequantized = (matrix.view(20, groups, -1) * scale).view(20, 32)
    packed = CodeMatrix(matrix, scale)
    assert torch.allclose(packed.matmul(x), x.float() @ dequantized.t(), rtol=1e-5, atol=1e-2)
    assert torch.equal(FloatCodes(matrix, scale).matmul(x.float()), packed.matmul(x))
    assert torch.equal(packed.codes, matrix)


def test_sums_are_exact_where_they_are_largest(kernel):
    assert is_exact.__wrapped__(torch.device("cpu"))
    extreme = torch.full((33, 4096), -128, dtype=torch.int8)
    assert bool((CodeMatrix(extreme[:8], torch.ones(())).matmul(extreme) == 128 * 128 * 4096).all())


def test_zeros_that_fill_up_rows_and_columns_are_left_out_again():
    padded = kernels._padded(codes(3, 13), 17, 8, 8)
    assert padded.shape == (17, 16) and torch.equal(padded[:3, :13], codes(3, 13)) and not padded[3:].any()
    assert kernels._padded(codes(24, 16), 17, 8, 8).shape == (24, 16)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12), st.floats(1e-6, 1e6))
@settings(max_examples=100, deadline=None)
def test_three_digits_hold_a_float(values, unit):
    weight = torch.tensor([values]) * unit
    digits, scale = three_digits(weight)
    error = ((digits.double() * scale.double()).sum(0) - weight.double()).abs().max()
    assert digits.dtype == torch.int8 and error <= weight.abs().max() * 2**-22 + torch.finfo(torch.float32).tiny
