"""What a run is told, section by section: validated dataclasses shared by the library and the params files.

Free of torch, so that a params file is checked before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.dataclasses import dataclass

from qatlib.precision import BIT_WIDTHS, FULL, Precision

Grid = Literal["narrow", "full", "midrise"]
RotationName = Literal["none", "hadamard"]

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
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


@dataclass(frozen=True, config=_STRICT)
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
    """Whether inputs and weights are quantized in a basis rotated by blocks of a Hadamard matrix."""
    nested: bool = False
    """Whether the codes of 2 to 7 bits are derived from the 8-bit codes, so that only those are stored."""
    group_size: Annotated[int, Field(ge=8)] = 64
    """Weights that share a scale under `per_group`; must divide the inputs of every layer."""

    @property
    def scale_group(self) -> int | None:
        """How many weights share a scale: `group_size`, 0 for all of a layer, None for those of a channel."""
        return {"per_group": self.group_size, "per_tensor": 0, "per_channel": None}[self.weights]


@dataclass(frozen=True, config=_STRICT)
class TrainingArguments:
    """One training loop: AdamW, linear warm-up, then linear decay to 0.

    Example:
        >>> args = TrainingArguments(steps=300, batch_size=8, learning_rate=1e-3, warmup_steps=30)
        >>> args.weight_decay, args.gradient_bits
        (0.0, 32)
    """

    steps: Annotated[int, Field(ge=1)]
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=1)]
    """Features (windows) in a step."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Learning rate after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up; at most `steps`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    lm_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the next-token loss beside the span loss. It keeps the language model, and so the meaning of perplexity."""
    gradient_bits: BitWidth = FULL
    """Bits of the gradients that enter the switchable layers in the backward pass, rounded stochastically, one scale per token;
    32 for floats (CPT: 8)."""
    gradient_checkpointing: bool = False
    """Keep only each block's input, and compute the rest again in the backward pass: less memory, one more forward pass."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints."""

    @field_validator("warmup_steps")
    @classmethod
    def _within_steps(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("steps", value):
            raise ValueError(f"an integer from 0 to steps ({info.data['steps']})")
        return value


@dataclass(frozen=True, config=_STRICT)
class CosineArguments:
    """The cosine of cyclic precision training; `qatlib.schedule.cosine_bits` has the equation."""

    cycles: Annotated[int, Field(ge=1)] | None = None
    """How often the bit-width rises in a training (and falls, where the form is continuous); or give the period."""
    period: Annotated[Annotated[int, Field(ge=1)] | None, Field(validate_default=True)] = None
    """Steps of one rise."""
    between: tuple[PrecisionField, PrecisionField] | None = None
    """Two of the precisions, the one with fewer weight bits first; the narrowest and the widest of all if left out."""
    form: Literal["restart", "continuous"] = "restart"
    """Every cycle starts again from the narrowest (Fu et al. 2021), or falls as it rose (S0's equation as it stands)."""
    order: Literal["forward", "reversed", "shuffled"] = "forward"
    """The bit-widths of the whole training as the equation gives them, from the last to the first, or mixed up."""

    @field_validator("period")
    @classmethod
    def _either(cls, value: int | None, info: ValidationInfo) -> int | None:
        if "cycles" in info.data and (value is None) == (info.data["cycles"] is None):
            raise ValueError("an integer of at least 1 if cycles is null, or null if it is not")
        return value

    @field_validator("between")
    @classmethod
    def _rising(cls, value: tuple[Precision, Precision] | None) -> tuple[Precision, Precision] | None:
        if value and value[0].w_bits >= value[1].w_bits:
            raise ValueError("two precisions, the one with fewer weight bits first")
        return value


@dataclass(frozen=True, config=_STRICT)
class PhaseArguments:
    """A second phase of a training at one precision for all layers (S2's two-phase CPT)."""

    precision: PrecisionField
    """One of the precisions."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the training's steps, the last ones."""


@dataclass(frozen=True, config=_STRICT)
class ScheduleArguments:
    """Which configurations a training step sees; `qatlib.schedule` says what each schedule does and whose it is.

    Example:
        >>> ScheduleArguments("sandwich").passes_a_step(5)
        4
    """

    name: Literal["random_per_layer", "random_uniform", "all", "sandwich", "cyclic", "progressive", "scheduled", "cpt"]
    """`random_per_layer` and `random_uniform` draw `passes` configurations a step, layer by layer or one precision for all
    layers. `all`: every precision at every step. `sandwich`: the widest, the narrowest and `passes` − 2 drawn ones. `cyclic`: one
    precision a step, in the order of the list. `progressive`: from the widest to the narrowest, an equal share of the steps each.
    `scheduled`: along `pattern`. `cpt`: along `cosine`."""
    passes: Annotated[Annotated[int, Field(ge=1)] | None, Field(validate_default=True)] = None
    """Configurations a step, where they are drawn: 1 if left out, 4 for `sandwich`, which takes at least 2."""
    pattern: Annotated[tuple[PrecisionField, ...] | None, Field(validate_default=True)] = None
    """The precisions that `scheduled` goes through, round and round: [8, 6, 4, 2, 4, 6, 8]."""
    interval: Annotated[int, Field(ge=1)] = 1
    """Steps for which a draw, or a place in a pattern, is held."""
    cosine: Annotated[CosineArguments | None, Field(validate_default=True)] = None
    """The cosine that `cpt` follows."""
    then: PhaseArguments | None = None
    """What follows `cyclic`, `scheduled` or `cpt` at the end of the training; null for nothing."""

    @field_validator("passes")
    @classmethod
    def _drawn(cls, value: int | None, info: ValidationInfo) -> int | None:
        name = info.data.get("name")
        if value is not None and name in ("all", "cyclic", "progressive", "scheduled", "cpt"):
            count = "every precision" if name == "all" else "one precision"
            raise ValueError(f"null, because {name} trains {count} a step")
        if value == 1 and name == "sandwich":
            raise ValueError("an integer of at least 2, because sandwich trains the widest and the narrowest precision")
        return value

    @field_validator("pattern")
    @classmethod
    def _listed(cls, value: tuple[Precision, ...] | None, info: ValidationInfo) -> tuple[Precision, ...] | None:
        name = info.data.get("name")
        if name == "scheduled" and not value:
            raise ValueError("a list of at least one of precisions, which scheduled goes through")
        if name not in (None, "scheduled") and value is not None:
            raise ValueError(f"null, because {name} goes through no pattern")
        return value

    @field_validator("interval")
    @classmethod
    def _held(cls, value: int, info: ValidationInfo) -> int:
        reasons = {
            "all": "all trains every precision at every step",
            "progressive": "progressive gives every precision an equal share of the steps",
            "cpt": "cpt has cycles, or a period",
        }
        if value > 1 and (reason := reasons.get(info.data.get("name", ""))):
            raise ValueError(f"1, because {reason}")
        return value

    @field_validator("cosine")
    @classmethod
    def _followed(cls, value: CosineArguments | None, info: ValidationInfo) -> CosineArguments | None:
        name = info.data.get("name")
        if name == "cpt" and value is None:
            raise ValueError("a section with cycles or a period, which cpt follows")
        if name not in (None, "cpt") and value is not None:
            raise ValueError(f"null, because {name} follows no cosine")
        return value

    @field_validator("then")
    @classmethod
    def _after(cls, value: PhaseArguments | None, info: ValidationInfo) -> PhaseArguments | None:
        name = info.data.get("name")
        if value is not None and name not in (None, "cyclic", "scheduled", "cpt"):
            raise ValueError(f"null, because a second phase follows cyclic, scheduled or cpt, not {name}")
        return value

    def passes_a_step(self, precisions: int) -> int:
        """Forward-backward passes of one step over so many precisions."""
        if self.name == "random_per_layer":
            return self.passes or 1
        if self.name == "all":
            return precisions
        return min(self.passes or (4 if self.name == "sandwich" else 1), precisions)


@dataclass(frozen=True, config=_STRICT)
class AttackArguments:
    """What an attacker on embeddings does; `qatlib.attacks.embedding` has the equations.

    Example:
        >>> AttackArguments(epsilon=0.1, steps=10, restarts=2).passes
        22
    """

    epsilon: Annotated[float, Field(ge=0)]
    """Radius, in units of the mean norm of the token embeddings. In L2 that of a token's perturbation. In L∞ that of a coordinate
    times the square root of their number, so that the corners of the cube are as far away as the sphere of L2."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball: L∞ or L2."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Gradient steps of each restart."""
    step_size: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of epsilon, at most 1; 2.5 / steps if left out (Madry et al. 2018)."""
    restarts: Annotated[int, Field(ge=1)] = 1
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


@dataclass(frozen=True, config=_STRICT)
class ObjectiveArguments:
    """What a training step minimises; `qatlib.objectives` says what each objective adds and whose it is."""

    name: Literal["average", "joint", "cascaded", "distillation", "consistency"]
    """`average` and `joint`: the mean or the sum of the task's losses. `cascaded`: each configuration also learns from all wider
    ones of its step. `consistency`: from the widest one. `distillation`: from the teacher at full precision."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the term that an objective which learns from others adds to the task's loss."""
    divergence: Literal["kl", "js", "mse"] = "kl"
    """Between distributions over context tokens, or between their centred logits (`mse`)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softening of both distributions, in objectives that soften them."""

    @field_validator("weight", "divergence")
    @classmethod
    def _added(cls, value: float | str, info: ValidationInfo) -> float | str:
        default = {"weight": 1.0, "divergence": "kl"}[str(info.field_name)]
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
