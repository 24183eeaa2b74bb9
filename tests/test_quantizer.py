"""The quantizer's properties: fake is real, errors within half a step, gradients straight through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qatlib.quantizer import (
    EMAObserver,
    absmax,
    code_dtype,
    code_range,
    dequantize,
    fake_quantize,
    fake_quantize_dynamic,
    minmax_scale,
    quantize,
    sqnr_db,
)

BITS = st.integers(2, 16)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
DIMS = st.sampled_from([None, 0, 1, -1])


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 9)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-4, 4))
    x[torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0
    return x.to(draw(DTYPES))


@given(matrices(), BITS, DIMS, st.booleans(), st.floats(0.1, 2))
def test_fake_is_real_to_the_last_bit(x, bits, dims, narrow, shrink):
    scale = minmax_scale(x, bits, dims, narrow) * shrink  # below 1 values are clamped
    real = dequantize(quantize(x, scale, bits, narrow), scale, x.dtype)
    assert torch.equal(fake_quantize(x, scale, bits, narrow), real)


@given(matrices(), BITS, DIMS)
def test_minmax_never_clips_and_errs_by_half_a_step_at_most(x, bits, dims):
    x = x.double()
    scale = minmax_scale(x, bits, dims)
    q_min, q_max = code_range(bits)
    assert bool(((x / scale).round() >= q_min).all() and ((x / scale).round() <= q_max).all())
    assert bool(((fake_quantize(x, scale, bits) - x).abs() <= scale / 2 * (1 + 1e-9)).all())


@given(matrices(), BITS, st.booleans())
def test_codes_stay_in_their_range_and_type(x, bits, narrow):
    codes = quantize(x, minmax_scale(x, bits, None, narrow) / 3, bits, narrow)
    q_min, q_max = code_range(bits, narrow)
    assert codes.dtype == code_dtype(bits) and q_min <= int(codes.min()) and int(codes.max()) <= q_max


@given(matrices(), BITS)
def test_quantizing_twice_changes_nothing(x, bits):
    once = fake_quantize_dynamic(x.double(), bits)
    assert torch.allclose(fake_quantize_dynamic(once, bits), once, rtol=1e-12, atol=0)


@given(matrices(), BITS)
def test_the_narrow_grid_is_symmetric(x, bits):
    assert torch.equal(fake_quantize_dynamic(-x, bits), -fake_quantize_dynamic(x, bits))


@given(matrices(), BITS)
def test_a_scale_a_token_does_not_see_other_tokens(x, bits):
    rows = torch.cat([fake_quantize_dynamic(row, bits) for row in x.split(1)])
    assert torch.equal(fake_quantize_dynamic(x, bits), rows)


def test_levels_at_two_bits():
    x = torch.linspace(-1, 1, 1001)
    assert fake_quantize_dynamic(x, 2, None, narrow_range=True).unique().numel() == 3
    assert fake_quantize_dynamic(x, 2, None, narrow_range=False).unique().numel() == 4


@given(matrices(), BITS, st.booleans())
def test_gradient_is_one_inside_and_zero_where_clamped(x, bits, narrow):
    x = x.double().requires_grad_()
    scale = minmax_scale(x, bits, None, narrow) / 3
    fake_quantize(x, scale, bits, narrow).sum().backward()
    q_min, q_max = code_range(bits, narrow)
    codes = (x.detach() / scale).round()
    assert torch.equal(x.grad, ((codes >= q_min) & (codes <= q_max)).double())


def test_unclipped_backward_keeps_nothing():
    x = torch.randn(4, 8, requires_grad=True)
    y = fake_quantize_dynamic(x, 4)
    assert not y.grad_fn.saved_tensors
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("bits", [0, 1, 17, 32, -4])
def test_bit_widths_without_a_grid_are_refused(bits):
    with pytest.raises(ValueError, match=f"2 to 16 bits, not {bits}"):
        code_range(bits)


def test_a_bit_is_worth_six_decibels():
    x = torch.rand(100_000, dtype=torch.float64) * 2 - 1
    steps = [sqnr_db(x, fake_quantize_dynamic(x, b, None)) for b in range(8, 14)]
    assert all(abs(b - a - 6.02) < 0.15 for a, b in zip(steps, steps[1:], strict=False))


@given(st.lists(matrices(), min_size=1, max_size=5), st.floats(0, 0.99))
def test_observer_is_the_moving_average_of_magnitudes(batches, momentum):
    observer = EMAObserver(momentum)
    expected = None
    for x in batches:
        observer.observe(x.float())
        seen = float(x.float().abs().max())
        expected = seen if expected is None else momentum * expected + (1 - momentum) * seen
    assert float(observer.absmax) == pytest.approx(expected, rel=1e-5)


@given(matrices())
def test_absmax_is_the_largest_magnitude(x):
    assert float(absmax(x)) == float(x.float().abs().max() if x.dtype != torch.float64 else x.abs().max())
    assert absmax(x, 1).shape == (x.shape[0], 1)
