"""Layer norms at low precision. This is an exception: everywhere else in this library norms are not quantized.

S4's C9, 'layernorm fp32', scored exactly as its C2, every layer at 4 bits. If norms are always in fp32, C9 and C2 are the same
configuration. C9 could only differ from C2 with quantized norms, which are `with quantized_norms(model, 4)` around C2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qatlib.grids import GRIDS
from qatlib.model import SwitchableModel
from qatlib.precision import FULL, Precision
from qatlib.quantizer import fake_quantize_dynamic


@contextmanager
def quantized_norms(model: SwitchableModel, bits: int) -> Iterator[list[str]]:
    """Fake-quantize the language model's norms inside a `with` block. Afterwards they are restored.

    A norm's gain gets one min-max scale, and its output one scale per token. Its bias is not quantized, like the biases of
    linear layers. Gradients pass straight through the outputs. The input of a layer after a norm is then already on a grid.
    So at equal bit-widths the layer's activation quantizer changes it no further (except for rounding).

    Args:
        bits: 2..16, or 32 for no quantization.

    Yields:
        The names of the norms, including the one before the heads; none at 32 bits.

    Raises:
        ValueError: not a bit-width; the norms are being trained (the training would be lost after the block); no norms.
    """
    Precision.parse(bits)
    norms = {name: m for name, m in model.lm.named_modules() if type(m).__name__.endswith("Norm")} if bits != FULL else {}
    gains = [p for norm in norms.values() for name, p in norm.named_parameters() if name == "weight"]  # a norm may have none
    if bits != FULL and not norms:
        raise ValueError(f"{type(model.lm).__name__} has no norms to quantize")
    if any(gain.requires_grad for gain in gains):
        raise ValueError("the norms are being trained: freeze the base before quantizing them")
    grid = GRIDS[model.quantizer.grid].activations

    def on_grid(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return fake_quantize_dynamic(output, bits, -1, grid)

    exact = [gain.detach().clone() for gain in gains]
    hooks = [norm.register_forward_hook(on_grid) for norm in norms.values()]
    try:
        with torch.no_grad():
            for gain in gains:
                gain.copy_(fake_quantize_dynamic(gain, bits, None, grid))
        yield list(norms)
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for gain, value in zip(gains, exact, strict=True):
                gain.copy_(value)
