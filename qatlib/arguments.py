"""What a run is told, section by section: validated dataclasses shared by the library and the params files.

Free of torch, so that a params file is checked before anything heavy is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.dataclasses import dataclass

from qatlib.precision import BIT_WIDTHS, FULL, Precision

Grid = Literal["narrow", "full", "midrise"]
RotationName = Literal["none", "block", "hadamard"]

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Size = Annotated[int, Field(ge=1, le=65_536)]
"""One side of a tensor: what is allocated at once."""
Positive = Annotated[float, Field(ge=1e-9, le=1e9)]
"""No closer to 0, and no larger, than what arithmetic in fp32 can bear."""
NotNegative = Annotated[float, Field(ge=0, le=1e9)]

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""How every section is read: nothing unknown, nothing converted."""
T = TypeVar("T")
_BIT_WIDTH = f"a bit-width from 2 to 16 or {FULL}"
PRECISION = "a bit-width from 2 to 16 or 32, or weights and activations as 'w4a8'"


def _precision(value: Any) -> Precision:
    try:
        return Precision.parse(value)
    except ValueError:
        raise ValueError(PRECISION) from None


PrecisionField = Annotated[
    Precision,
    PlainValidator(_precision),
    PlainSerializer(lambda p: p.name, return_type=str),
    WithJsonSchema({"description": PRECISION}),
]
"""A `Precision` in a params file: whatever `Precision.parse` reads, written back by its name."""


def _bit_width(value: int) -> int:
    if value not in BIT_WIDTHS:
        raise ValueError(_BIT_WIDTH)
    return value


BitWidth = Annotated[int, AfterValidator(_bit_width), WithJsonSchema({"description": _BIT_WIDTH})]


def sentence(error: ValidationError, names: Sequence[str] = ()) -> str:
    """The first error of pydantic in one sentence: the key, what is given, and what is allowed.

    Args:
        names: of arguments that are given by position.
    """
    found = error.errors(include_url=False)[0]
    first, *inner = found["loc"] or ("the whole",)
    key = ".".join(map(str, (names[first] if isinstance(first, int) and names else first, *inner)))
    if found["type"] == "json_invalid":
        return found["msg"]
    if found["type"] in ("missing", "missing_argument"):
        return f"{key} is missing"
    if found["type"] == "value_error":
        return f"{key} is {found['input']!r:.80}; allowed is {found['ctx']['error']}"
    said = found["msg"].replace("Input should be ", "allowed is ")
    return f"{key} is {found['input']!r:.80}; {said[:1].lower()}{said[1:]}"


def in_a_sentence(cls: type[T]) -> type[T]:
    """Let a dataclass of pydantic refuse arguments by a `ValueError` of one sentence, where it is made in Python."""
    make: Any = cls.__init__
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(make)
    def refusing(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            make(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError(f"{cls.__name__}: {sentence(error, names)}") from error

    cls.__init__ = refusing  # type: ignore[method-assign]
    return cls


@in_a_sentence
@dataclass(frozen=True, config=STRICT)
class QuantizerArguments:
    """How numbers are put on a grid; the bit-widths are chosen elsewhere.

    Example:
        >>> model.set_quantizer(QuantizerArguments(clipping="mse", grid="midrise"))
    """

    weights: Literal["per_channel", "per_tensor", "per_group"] = "per_channel"
    """One weight scale per output channel, one for the whole matrix, or one for every `group_size` neighbours in a channel."""
    activations: Literal["per_token", "per_tensor_static"] = "per_token"
    """One dynamic scale per token, or one calibrated scale per layer (EMA observer)."""
    grid: Grid = "narrow"
    """`narrow`: 2^b − 1 levels, ±(2^(b−1) − 1) (LLM-QAT). `full`: all 2^b, −2^(b−1) … 2^(b−1) − 1 (torchao). `midrise`: all 2^b
    without a zero, for weights of 2 to 4 bits; narrow for the rest."""
    clipping: Literal["minmax", "mse"] = "minmax"
    """The grid ends at the largest magnitude (`minmax`), or where the squared error is least (`mse`): for each weight scale by
    search, for a layer's activations at a calibrated share of each token's largest magnitude."""
    learned_steps: bool = False
    """Whether training goes on to learn what `clipping` starts from (LSQ, Esser et al. 2020)."""
    rotation: RotationName = "none"
    """The basis that inputs and weights are quantized in, rotated by Hadamard matrices: not at all, in blocks of at most 64
    features, or over the largest part of the width that has such a matrix (`hadamard`)."""
    rounding: Literal["nearest", "compensated"] = "nearest"
    """How weights of 2 to 8 bits are rounded: each to its nearest code, or so that the rounding errors of a layer compensate one
    another on calibration inputs (GPTQ, Frantar et al. 2023, and coordinate descent), which takes a frozen base."""
    nested: bool = False
    """Whether the codes of 2 to 7 bits are derived from the 8-bit codes, so that only those are stored."""
    group_size: Annotated[int, Field(ge=8, le=65_536)] = 64
    """Weights that share a scale under `per_group`; must divide the inputs of every layer."""

    @property
    def scale_group(self) -> int | None:
        """How many weights share a scale: `group_size`, 0 for all of a layer, None for those of a channel."""
        return {"per_group": self.group_size, "per_tensor": 0, "per_channel": None}[self.weights]


@in_a_sentence
@dataclass(frozen=True, config=STRICT)
class TrainingArguments:
    """One training loop: AdamW, linear warm-up, then linear decay to 0.

    Example:
        >>> args = TrainingArguments(steps=300, batch_size=8, learning_rate=1e-3, warmup_steps=30)
        >>> args.weight_decay, args.gradient_bits
        (0.0, 32)
    """

    steps: Count
    """Optimizer steps."""
    batch_size: Size
    """Features (windows) in a step."""
    learning_rate: Positive
    """Learning rate after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Steps of linear warm-up; at most `steps`."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    lm_weight: NotNegative = 0.0
    """Weight of the next-token loss beside the span loss. It keeps the language model, and so the meaning of perplexity."""
    gradient_bits: BitWidth = FULL
    """Bits of the gradients that enter the switchable layers in the backward pass, rounded stochastically, one scale per token;
    32 for floats (CPT: 8)."""
    gradient_checkpointing: bool = False
    """Keep only each block's input, and compute the rest again in the backward pass: less memory, one more forward pass."""
    checkpoint_every: Count = 100
    """Steps between checkpoints."""

    @field_validator("warmup_steps")
    @classmethod
    def _within_steps(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("steps", value):
            raise ValueError(f"an integer from 0 to steps ({info.data['steps']})")
        return value


@in_a_sentence
@dataclass(frozen=True, config=STRICT)
class AttackArguments:
    """What an attacker on embeddings does; `qatlib.attacks.embedding` has the equations.

    Example:
        >>> AttackArguments(epsilon=0.1, steps=10, restarts=2).passes
        22
    """

    epsilon: NotNegative
    """Radius, in units of the mean norm of the token embeddings. In L2 that of a token's perturbation. In L∞ that of a coordinate
    times the square root of their number, so that the corners of the cube are as far away as the sphere of L2."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball: L∞ or L2."""
    steps: Count = 10
    """Gradient steps of each restart."""
    step_size: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of epsilon, at most 1; 2.5 / steps if left out (Madry et al. 2018)."""
    restarts: Count = 1
    """Starts of the attack, each from a random point of the ball; without `random_start` the first is the clean input."""
    random_start: bool = True
    """Whether the first start is a random point of the ball instead of the clean input."""
    loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    """What the attacker raises: the cross entropy of the answer, or the margin of the best wrong token."""

    @classmethod
    def fgsm(cls, epsilon: float, norm: Literal["linf", "l2"] = "linf") -> AttackArguments:
        """One step to the border from the clean input (Goodfellow et al. 2015)."""
        return cls(epsilon, norm, steps=1, step_size=1, random_start=False)

    @property
    def passes(self) -> int:
        """Passes over a batch for each configuration averaged over; all but the last of a restart go back as well."""
        return self.restarts * (self.steps + 1)


class Objective(NamedTuple):
    """What a training and its checks need to know of an objective; `qatlib.objectives` has the equations."""

    learns_from: Literal["wider", "widest", "teacher"] | None = None
    """Whom its added term compares with: all wider configurations of the step, the widest, or the teacher; None if no one."""
    sums: bool = False
    """Whether the losses of a step's configurations are added up, not averaged."""
    softens: bool = False
    """Whether a temperature may soften the distributions."""

    @property
    def needs_teacher(self) -> bool:
        """Whether a training needs a teacher."""
        return self.learns_from == "teacher"

    @property
    def needs_several(self) -> bool:
        """Whether a step needs several configurations."""
        return self.learns_from in ("wider", "widest")


OBJECTIVES: Mapping[str, Objective] = {
    "average": Objective(),
    "joint": Objective(sums=True),
    "cascaded": Objective("wider"),
    "distillation": Objective("teacher", softens=True),
    "consistency": Objective("widest"),
}


@in_a_sentence
@dataclass(frozen=True, config=STRICT)
class ObjectiveArguments:
    """What a training step minimises; `qatlib.objectives` says what each objective adds and whose it is."""

    name: Literal["average", "joint", "cascaded", "distillation", "consistency"]
    """`average` and `joint`: the mean or the sum of the task's losses. `cascaded`: each configuration also learns from all wider
    ones of its step. `consistency`: from the widest one. `distillation`: from the teacher at full precision."""
    weight: Positive = 1.0
    """Weight of the term that an objective which learns from others adds to the task's loss."""
    divergence: Literal["kl", "js", "mse"] = "kl"
    """Between distributions over context tokens, or between their centred logits (`mse`)."""
    temperature: Positive = 1.0
    """Softening of both distributions, in objectives that soften them."""
    hidden_weight: NotNegative = 0.0
    """Weight of the distance between last hidden states, beside `weight` for that between answers."""

    @field_validator("weight", "divergence", "hidden_weight")
    @classmethod
    def _added(cls, value: float | str, info: ValidationInfo) -> float | str:
        default = {"weight": 1.0, "divergence": "kl", "hidden_weight": 0.0}[str(info.field_name)]
        if value != default and (name := info.data.get("name")) and OBJECTIVES[name].learns_from is None:
            raise ValueError(f"{default!r} or nothing, because {name} adds no term to the task's loss")
        return value

    @field_validator("temperature")
    @classmethod
    def _softened(cls, value: float, info: ValidationInfo) -> float:
        if value != 1 and (name := info.data.get("name")) and not OBJECTIVES[name].softens:
            raise ValueError(f"1 or nothing, because {name} softens no distribution")
        if value != 1 and info.data.get("divergence") == "mse":
            raise ValueError("1 or nothing, because it cancels out in the mse of logits")
        return value

    @property
    def rule(self) -> Objective:
        """What is known of the objective of this name."""
        return OBJECTIVES[self.name]
