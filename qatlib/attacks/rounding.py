"""Noise in the rounding of activations: plain randomness, which random precision inference is held against.

Uniform noise of half a step on either side, added before rounding, makes rounding stochastic: what is read back is, in
expectation, the number itself. It needs no second precision; where it defends as well, the defence is noise.
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
    """Every layer rounds its input with noise that is new at every pass; weights, and inputs left at 32 bits, are as ever.

    Gradients go straight through, as through any rounding.
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
    (result,) = layer.at_each([Precision(w_bits, FULL)], x)  # its input is on the grid already
    layer.precision = own
    return result
