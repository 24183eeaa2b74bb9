"""The product of codes is the product of what they are read back as, and its steps do not depend on how it is cut up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qatlib.arguments import QuantizerArguments
from qatlib.kernels import CodeMatrix, FloatCodes, exact_kernel
from qatlib.products import AdapterFactors, InputQuantizer, code_product
from qatlib.quantizer import fake_quantize, minmax_scale, quantize

X, W, A, B, BIAS = (
    torch.randn(size, generator=torch.Generator().manual_seed(i))
    for i, size in enumerate([(100, 64), (24, 64), (3, 64), (24, 3), (24,)])
)
SCALE = minmax_scale(W, 4, 1)
INTEGERS = exact_kernel(torch.device("cpu"))
"""The kernel that this machine gets: integers, or floats where integer sums are not exact."""
KINDS = pytest.mark.parametrize("kind", list(dict.fromkeys([INTEGERS, FloatCodes])), ids=lambda kind: kind.__name__)


def product(x: Tensor, kind: type[CodeMatrix | FloatCodes], adapted: bool, clip: Tensor | None = None) -> Tensor:
    quantizer = InputQuantizer(8, QuantizerArguments(), clip, None)
    adapter = AdapterFactors(A, B, BIAS, kind) if adapted else None
    return code_product(x, quantizer, kind(quantize(W, SCALE, 4), SCALE), adapter, BIAS)


@KINDS
@pytest.mark.parametrize("tokens", [0, 1, 63, 64, 100])
@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("clip", [None, torch.tensor(0.7)])
def test_it_is_the_product_of_what_is_read_back(kind, tokens, adapted, clip):
    x = X[:tokens]
    seen = fake_quantize(x, minmax_scale(x, 8, -1) * (1 if clip is None else clip), 8) if tokens else x
    expected = seen @ fake_quantize(W, SCALE, 4).t() + BIAS + (seen @ A.t() @ B.t() if adapted else 0)
    torch.testing.assert_close(product(x, kind, adapted, clip), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 63, 64, 100])
@pytest.mark.parametrize("adapted", [True, False])
def test_integers_and_floats_give_the_same_bits(tokens, adapted):
    assert torch.equal(product(X[:tokens], INTEGERS, adapted), product(X[:tokens], FloatCodes, adapted))


@KINDS
@pytest.mark.parametrize("block", [1, 480, 2**20])
def test_blocks_of_any_size_give_the_same(kind, block, monkeypatch):
    at_once = product(X, kind, True)
    monkeypatch.setattr("qatlib.products._BLOCK", block)
    torch.testing.assert_close(product(X, kind, True), at_once, rtol=1e-6, atol=1e-5)


def test_static_scales_want_a_calibration_pass():
    with pytest.raises(RuntimeError, match="calibration"):
        InputQuantizer(8, QuantizerArguments(activations="per_tensor_static"), None, None).scale(X)
