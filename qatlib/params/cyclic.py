"""The section of a params file about cyclic precision training. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic import ValidationInfo as Info
from pydantic import field_validator as check

from qatlib.arguments import BitWidth, Count, Positive, PrecisionField
from qatlib.params.sections import Questions, Section, Seeds, once
from qatlib.params.yaml import given
from qatlib.precision import FULL


class RangeTest(Section):
    """Precision range test: a short training at each precision, from the narrowest up."""

    steps: Annotated[int, Field(ge=2, le=1_000_000_000)]
    """Steps of each training. The learning rate and the batches are those of `switchable`."""
    window: Count
    """Steps, at both ends, over which the training loss is averaged; at most half of `steps`."""
    threshold: Positive
    """Nats by which the span loss must fall from the first window to the last to count as progress."""

    @check("window")
    @classmethod
    def _short(cls, value: int, info: Info) -> int:
        if (steps := info.data.get("steps")) and value > steps / 2:
            raise ValueError(f"an integer from 1 to half of steps ({steps})")
        return value


class Sharpness(Section):
    """Loss under random perturbation of the trained weights, scaled filter by filter."""

    radii: Annotated[tuple[Positive, ...], Field(min_length=1), AfterValidator(once)]
    """Length of the perturbation, as a share of each filter's norm."""
    draws: Count
    """Random directions."""
    questions: Questions
    """Validation questions, spread evenly over all of them."""


CptMethod = Literal[
    "static",
    "random separate",
    "random shared",
    "cpt separate",
    "cpt shared",
    "pattern shared",
    "two-phase",
    "cpt reversed",
    "cpt shuffled",
    "random all weights",
    "cpt all weights",
]
"""What notebook 4 knows how to train; `qatlib.studies.cyclic` says what each is."""


class Cpt(Section):
    """Cyclic precision training beside static and random training, at equal passes, with every seed."""

    precisions: Annotated[tuple[PrecisionField, ...], Field(min_length=2), AfterValidator(once)] | None = None
    """What is trained. Null for those of the run's `precisions` that have at most 8 bits, if there are two (if not, for those of
    at most 16 bits, or for all)."""
    untrained: Annotated[tuple[PrecisionField, ...], AfterValidator(once)] = ()
    """Precisions that models without separate adapters are judged at as well. Those of `precisions` among them change nothing."""
    lowest: PrecisionField | None = None
    """Where cycles start; null for what the range test finds. They end at the widest of `precisions`."""
    cycles: Count
    """Cycles in a whole training."""
    form: Literal["restart", "continuous"] = "restart"
    """Every cycle starts again from the narrowest precision (`restart`, the CPT paper), or falls as it rose (`continuous`, S0's
    equation)."""
    gradient_bits: BitWidth = FULL
    """Bits of the gradients in every training here: 2 to 16, or 32 for floats."""
    second_phase: PrecisionField | None = None
    """The precision that the method two-phase ends at; null for where its cycles start."""
    second_phase_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of its passes."""
    passes: Count
    """Forward-backward passes of each training; at least `cycles`."""
    seeds: Seeds
    """Each training runs once with each seed. A claim about training takes three."""
    questions: Questions
    """Validation questions, spread evenly over all of them."""
    methods: Annotated[tuple[CptMethod, ...], Field(min_length=1), AfterValidator(once)]
    """`static`: one model per precision. `random`: one precision per step, drawn. `cpt`: one per step, along the cosine; its
    order may be reversed or shuffled. `pattern`: from the widest to the narrowest and back. `two-phase`: cycles, then one
    precision. `separate` and `shared` are about adapters; `all weights` trains no adapter."""
    static: Count | None = None
    """Number of `precisions`, spread from the widest to the narrowest, that `static` trains a model for; null for all."""
    equal_bitops: Annotated[tuple[CptMethod, ...], AfterValidator(once)] = ()
    """Methods that are trained a second time, for the bit operations that `passes` cost at the widest precision."""
    range_test: RangeTest
    """How the lowest precision is found that training makes progress at."""
    sharpness: Sharpness | None = None
    """Loss under random perturbation of the trained weights; null for none."""

    @check("passes")
    @classmethod
    def _enough(cls, value: int, info: Info) -> int:
        if value < (cycles := info.data.get("cycles", 1)):
            raise ValueError(f"an integer of at least {cycles}, the number of cycles")
        return value

    @check("equal_bitops")
    @classmethod
    def _also(cls, value: tuple[str, ...], info: Info) -> tuple[str, ...]:
        if other := [name for name in value if name not in info.data.get("methods", value)]:
            raise ValueError(f"a list of some of methods, which {given(other[0])} is not")
        return value
