"""What a run is told, section by section: validated dataclasses shared by the library and the params files.

Free of torch, so that a params file is checked before anything heavy is imported.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class QuantizerArguments:
    """How numbers are put on a grid; the bit-widths are chosen elsewhere."""

    weights: Literal["per_channel", "per_tensor"] = "per_channel"
    """One weight scale an output channel, or one for the whole matrix."""
    activations: Literal["per_token", "per_tensor_static"] = "per_token"
    """One dynamic scale a token, or one calibrated scale a layer (EMA observer)."""
    narrow_range: bool = True
    """Grid of 2^b − 1 levels, ±(2^(b−1) − 1) (LLM-QAT), or of all 2^b levels, −2^(b−1) … 2^(b−1) − 1 (torchao)."""


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
