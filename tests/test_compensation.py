"""Compensated codes are on the grid and never worse than nearest ones; a correction is the best of its rank."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib.compensation import DAMPING, GramObserver, compensated, low_rank_correction, output_error
from qatlib.grids import codes_of
from qatlib.quantizer import dequantize, grouped, minmax_scale, mse_scale, quantize


def layer(out: int, features: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(features, features, generator=generator)
    inputs = torch.randn(tokens, features, generator=generator) @ mixed
    observer = GramObserver()
    for part in inputs.split(7):
        observer.observe(part[None])
    assert observer.gram is not None and torch.allclose(observer.gram, inputs.t() @ inputs, rtol=1e-4, atol=1e-3)
    return torch.randn(out, features, generator=generator), observer.gram


def damped(gram: torch.Tensor) -> torch.Tensor:
    return gram.double() + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


def floats(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return dequantize(grouped(codes, scale), scale).view(codes.shape)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["narrow", "full", "midrise"]),
    st.sampled_from(["channel", "tensor", "group"]),
    st.sampled_from([2, 3, 4, 8]),
    st.integers(1, 60),
    st.sampled_from([0, 1, 4]),
    st.integers(0, 2**31),
)
def test_no_output_is_worse_than_with_nearest_codes(grid, shared, bits, tokens, sweeps, seed):
    weight, gram = layer(5, 16, tokens, seed)
    groups = weight.unflatten(1, (-1, 8)) if shared == "group" else weight
    scale = mse_scale(groups, bits, None if shared == "tensor" else -1, grid)
    nearest = quantize(grouped(weight, scale), scale, bits, grid).view(weight.shape)
    codes = compensated(weight, gram, {bits: scale}, grid, sweeps)[bits]
    low, high = codes_of(bits, grid).ends
    assert codes.dtype == nearest.dtype and low <= codes.min() and codes.max() <= high
    if codes_of(bits, grid).odd:
        assert (codes % 2 == 1).all()
    errors = [output_error(weight, floats(c, scale), damped(gram)) for c in (codes, nearest)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_widths_together_are_what_they_are_alone_and_the_same_every_time():
    weight, gram = layer(6, 80, 200, 0)
    scales = {bits: minmax_scale(weight, bits, -1) for bits in (8, 4, 2)}
    together = compensated(weight, gram, scales, "narrow")
    for bits, scale in scales.items():
        assert torch.equal(compensated(weight, gram, {bits: scale}, "narrow")[bits], together[bits])
    again = compensated(weight, gram, scales, "narrow")
    assert all(torch.equal(again[bits], codes) for bits, codes in together.items())


def test_without_sweeps_it_is_gptq_as_its_paper_has_it():
    """The reference inverts the Gram matrix of the remaining inputs anew at each step (Frantar et al. 2023, eq. 2 and 3)."""
    weight, gram = layer(4, 12, 30, 1)
    scale, hessian = mse_scale(weight, 3, -1), damped(gram)
    left, expected = weight.double().clone(), torch.zeros_like(weight)
    order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    for position, i in enumerate(order):
        rest = order[position:]
        inverse = torch.linalg.inv(hessian[rest][:, rest])
        expected[:, i] = quantize(left[:, i : i + 1].float(), scale, 3).squeeze(1)
        error = (left[:, i] - expected[:, i].double() * scale.squeeze(1)) / inverse[0, 0]
        left[:, rest] -= error[:, None] * inverse[0]
    found = compensated(weight, gram, {3: scale}, "narrow", sweeps=0)[3]
    better = output_error(weight, floats(expected, scale), hessian) <= output_error(weight, floats(found, scale), hessian)
    same = (found == expected).all(1)
    assert same.sum() >= 3 and (same | ~better).all()  # a row where nearest codes are better has those


def test_descent_ends_where_no_single_code_can_be_improved():
    weight, gram = layer(3, 6, 20, 2)
    scale = minmax_scale(weight, 2, -1)
    codes = compensated(weight, gram, {2: scale}, "narrow", sweeps=50)[2]
    least = output_error(weight, floats(codes, scale), damped(gram))
    for i, code in itertools.product(range(6), (-1, 0, 1)):
        other = codes.clone()
        other[:, i] = code
        assert (output_error(weight, floats(other, scale), damped(gram)) >= least * (1 - 1e-5)).all()


@pytest.mark.parametrize("dead", [0, 3])
def test_inputs_that_are_always_zero_do_no_harm(dead):
    weight, gram = layer(4, 8, 30, 3)
    gram[dead], gram[:, dead] = 0, 0
    codes = compensated(weight, gram, {4: minmax_scale(weight, 4, -1)}, "narrow")[4]
    assert codes.abs().max() <= 7


@given(st.integers(1, 4), st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_a_correction_is_the_best_of_its_rank(rank, seed):
    """Eckart and Young in the metric of the inputs: what is left is the tail of the singular values of E G^½."""
    error, gram = layer(5, 8, 40, seed)
    a, b = low_rank_correction(error, gram, rank)
    assert a.shape == (rank, 8) and b.shape == (5, rank)
    root = torch.linalg.cholesky(damped(gram))
    tail = torch.linalg.svdvals(error.double() @ root)[rank:].square().sum()
    assert torch.allclose(output_error(error, b @ a, damped(gram)).sum(), tail, rtol=1e-3, atol=1e-3)
    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-4)


def test_a_rank_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"a correction of a \(5, 8\) error has rank 1 to 5, not 6"):
        low_rank_correction(torch.ones(5, 8), torch.eye(8), 6)
