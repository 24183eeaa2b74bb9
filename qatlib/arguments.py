"""What a run is told, section by section: validated dataclasses shared by the library and the params files.

Free of torch, so that a params file is checked before anything heavy is imported.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

Grid = Literal["narrow", "full", "midrise"]

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class QuantizerArguments:
    """How numbers are put on a grid; the bit-widths are chosen elsewhere."""

    weights: Literal["per_channel", "per_tensor", "per_group"] = "per_channel"
    """One weight scale an output channel, one for the whole matrix, or one for `group_size` neighbours in a channel."""
    activations: Literal["per_token", "per_tensor_static"] = "per_token"
    """One dynamic scale a token, or one calibrated scale a layer (EMA observer)."""
    grid: Grid = "narrow"
    """Of 2^b − 1 levels, ±(2^(b−1) − 1) (`narrow`, LLM-QAT); of all 2^b, −2^(b−1) … 2^(b−1) − 1 (`full`, torchao); of all
    2^b without a zero, for weights of 2 to 4 bits, narrow for the rest (`midrise`)."""
    clipping: Literal["minmax", "mse"] = "minmax"
    """The grid ends at the largest magnitude, or where the squared error is least: found for each weight scale by search,
    for the activations of a layer as a share of each token's largest magnitude by calibration."""
    learned_steps: bool = False
    """Whether training goes on to learn what `clipping` starts from (LSQ, Esser et al. 2020)."""
    rotation: Literal["none", "hadamard"] = "none"
    """Whether inputs and weights are quantized in a basis rotated by blocks of a Hadamard matrix."""
    nested: bool = False
    """Whether the codes of 2 to 7 bits are derived from the 8-bit codes, so that those alone are stored."""
    group_size: Annotated[int, Field(ge=8)] = 64
    """Weights that share a scale under `per_group`; must divide the inputs of every layer."""

    @property
    def scale_group(self) -> int | None:
        """`group_size` where it is in use."""
        return self.group_size if self.weights == "per_group" else None


@dataclass(frozen=True, config=_STRICT)
class TrainingArguments:
    """One training loop: AdamW, linear warm-up, then linear decay to 0."""

    steps: Annotated[int, Field(ge=1)]
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=1)]
    """Features (windows) a step."""
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    lm_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the next-token loss beside the span loss: keeps the language model and so the meaning of perplexity."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints."""

    @field_validator("warmup_steps")
    @classmethod
    def _within_steps(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("steps", value):
            raise ValueError(f"an integer from 0 to steps ({info.data['steps']})")
        return value
