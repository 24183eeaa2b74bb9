"""Integer products are exact, whatever kernel makes them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib import kernels
from qatlib.kernels import CodeMatrix, FloatCodes, exact_kernel, is_exact, three_digits

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
CPU = torch.device("cpu")


@pytest.fixture(params=["onednn", "int_mm"])
def kernel(request, monkeypatch):
    """Both integer kernels that a CPU has."""
    if request.param == "onednn" and not kernels.has_onednn():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(kernels, "has_onednn", lambda: request.param == "onednn")
    kernels.is_exact.cache_clear()
    yield
    kernels.is_exact.cache_clear()


def codes(rows: int, columns: int, seed: int = 0, device: str = "cpu", most: int = 128) -> torch.Tensor:
    shape, generator = (rows, columns), torch.Generator().manual_seed(seed)
    return torch.randint(-most, most, shape, generator=generator, dtype=torch.int8).to(device)


def sums(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return (x.cpu().long() @ matrix.cpu().long().t()).float().to(x.device)


SHAPES = [(1, 12, 20), (3, 33, 7), (17, 768, 48), (40, 8, 8), (0, 8, 8)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_products_are_the_scaled_integer_sums(tokens, inputs, outputs, device, kernel):
    matrix, x = codes(outputs, inputs, device=device), codes(tokens, inputs, 1, device)
    scale = torch.rand(outputs, 1, device=device)
    for kind in (exact_kernel(matrix.device), FloatCodes):
        assert torch.equal(kind(matrix, scale).matmul(x.to(kind.dtype)), sums(x, matrix) * scale.t())
        assert torch.equal(kind(matrix, scale[0, 0]).matmul(x.to(kind.dtype)), sums(x, matrix) * scale[0, 0])


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_integer_kernels_are_exact_on_every_processor_where_no_pair_of_products_leaves_16_bits(tokens, inputs, outputs, kernel):
    """Without VNNI inputs are shifted to 0 … 255 and pairs are summed in 16 bits: 2 · 255 · 64 = 32,640 < 2¹⁵."""
    matrix, x = codes(outputs, inputs, most=64), codes(tokens, inputs, 1)
    assert torch.equal(CodeMatrix(matrix, torch.ones(())).matmul(x), sums(x, matrix))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_matrix_gives_back_its_codes(groups, kernel):
    matrix = codes(20, 32)
    packed = CodeMatrix(matrix, torch.rand(20, groups, 1))
    assert torch.equal(packed.codes, matrix) and packed.nbytes >= matrix.nbytes


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_inputs_are_scaled_each_by_its_own(groups, kernel):
    matrix, x, scale = codes(20, 32), codes(9, 32, 1), torch.rand(20, groups, 1)
    dequantized = (matrix.view(20, groups, -1) * scale).view(20, 32)
    kind = exact_kernel(CPU)
    products = kind(matrix, scale).matmul(x.to(kind.dtype))
    # fp32 rounding of 32 terms of at most 128 · 128: 32 · 2¹⁴ · 2⁻²⁴ = 0.03 at the worst, 0.01 in practice
    assert torch.allclose(products, x.float() @ dequantized.t(), rtol=1e-5, atol=4e-2)
    assert torch.equal(FloatCodes(matrix, scale).matmul(x.float()), products)


def test_the_kernel_that_is_used_is_exact_where_sums_are_largest(kernel):
    """The integer kernel where it is exact, else floats, which hold sums of 1,024 products of the largest codes."""
    kind, extreme = exact_kernel(CPU), torch.full((33, 1024), -128, dtype=torch.int8)
    assert (kind is CodeMatrix) == is_exact(CPU)
    assert bool((kind(extreme[:8], torch.ones(())).matmul(extreme.to(kind.dtype)) == 128 * 128 * 1024).all())


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
