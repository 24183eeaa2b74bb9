"""Noise in the rounding of activations: plain randomness, as a comparison for random precision inference.

Uniform noise of ± half a step, added before rounding, makes rounding stochastic. The expectation of the rounded number is the
number itself. No second precision is needed. If this defends equally well, then the defence is only noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from qatlib.layers import SwitchableLinear, forwards_replaced
from qatlib.model import SwitchableModel
from qatlib.precision import FULL, Precision
from qatlib.quantizer import fake_quantize


@contextmanager
def noisy_rounding(model: SwitchableModel, generator: torch.Generator) -> Iterator[None]:
    """Every layer rounds its input with new noise at every pass. Weights, and inputs at 32 bits, are not affected.

    Gradients use the straight-through estimator, as for any rounding.
    """
    with (
        model.at(model.configuration),
        forwards_replaced({layer: partial(_noisily, layer, generator) for layer in model.layers}),
    ):
        yield


def _noisily(layer: SwitchableLinear, generator: torch.Generator, x: Tensor) -> Tensor:
    w_bits, a_bits = own = layer.precision
    if a_bits != FULL:
        quantizer = layer.input_quantizer(a_bits)
        seen = quantizer.rotation.apply(x)
        scale = quantizer.scale(seen)
        noise = (torch.rand(seen.shape, generator=generator).to(seen) - 0.5) * scale.detach()
        x = quantizer.rotation.inverse(fake_quantize(seen + noise, scale, a_bits, quantizer.grid))
    (result,) = layer.at_each([Precision(w_bits, FULL)], x)  # the input is already rounded
    layer.precision = own
    return result
