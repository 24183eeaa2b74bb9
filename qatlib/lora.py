"""LoRA adapters: their options, and the low-rank map that a layer adds to its output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qatlib.precision import BIT_WIDTHS, FULL

SHARED = 0
"""Key of the adapter that all weight bit-widths share."""


@dataclass(frozen=True)
class LoraSpec:
    """Rank, scaling numerator and dropout of one adapter (Hu et al. 2022); its output is scaled by alpha / rank.

    Example:
        >>> model.add_adapters({8: LoraSpec(8, 16), 4: LoraSpec(rank=16, alpha=32, dropout=0.05)})
        >>> model.lora[4].rank
        16
    """

    rank: int
    alpha: float
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, kinds, holds, allowed in (
            ("rank", int, lambda value: value >= 1, "an integer of at least 1"),
            ("alpha", (int, float), math.isfinite, "a finite number"),
            ("dropout", (int, float), lambda value: 0 <= value < 1, "a number from 0 to below 1"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds) or not holds(value):
                raise ValueError(f"the {name} of an adapter is {value!r}; allowed is {allowed}")


def check_adapters(specs: Mapping[int, LoraSpec]) -> None:
    """Check what `add_adapters` gets.

    Raises:
        ValueError: no mapping; a key is no weight bit-width and not `SHARED`; a value is no `LoraSpec`.
    """
    if not isinstance(specs, Mapping):
        raise ValueError(f"adapters are given as a mapping from weight bit-widths to LoraSpecs, not as {specs!r}")
    for w_bits, spec in specs.items():
        if type(w_bits) is not int or w_bits not in (*BIT_WIDTHS, SHARED):
            allowed = f"2 to 16, {FULL}, and {SHARED} for an adapter that all bit-widths share"
            raise ValueError(f"the bit-width of an adapter is {w_bits!r}; allowed are {allowed}")
        if not isinstance(spec, LoraSpec):
            raise ValueError(f"the adapter for {w_bits} bits is {spec!r}; allowed is a LoraSpec")


class Lora(nn.Module):
    """x ↦ (alpha / rank) · B A dropout(x), in fp32. B starts at zero, so a fresh adapter adds nothing."""

    def __init__(self, in_features: int, out_features: int, spec: LoraSpec) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(spec.rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, spec.rank))
        self.scaling = spec.alpha / spec.rank
        self.dropout = spec.dropout
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, in_features) → (…, out_features)."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return F.linear(F.linear(x.to(self.lora_A.dtype), self.lora_A * self.scaling), self.lora_B).to(x.dtype)
