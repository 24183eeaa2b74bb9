"""The sections of a params file about what is trained side by side, judged, lowered and searched. Free of torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic import ValidationInfo as Info
from pydantic import field_validator as check

from qatlib.arguments import BitWidth, ObjectiveArguments, PrecisionField, ScheduleArguments
from qatlib.named import NAMED
from qatlib.params.sections import Adapters, Count, DynamicQuantizer, Section, Seeds, Switchable, once
from qatlib.params.yaml import given
from qatlib.precision import FULL


def _label(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9 -]{0,39}", name) or name in ("switchable", "specialist"):
        raise ValueError("a name of up to 40 lower-case letters, digits, blanks and '-', but not switchable or specialist")
    return name


class Method(Section):
    """One line of a comparison: what it does otherwise than `switchable`, all else alike."""

    name: Annotated[str, AfterValidator(_label)]
    schedule: ScheduleArguments | None = None
    objective: ObjectiveArguments | None = None
    adapters: Adapters | None = None
    quantizer: DynamicQuantizer | None = None

    def applied(self, switchable: Switchable) -> Switchable:
        """The settings of `switchable` with what this method changes."""
        changes = {key: value for key, value in self if key != "name" and value is not None}
        return switchable.model_copy(update=changes)


class Comparisons(Section):
    """Trainings side by side, each at the same budget of forward-backward passes and with every seed."""

    passes: Count
    seeds: Seeds
    questions: Annotated[int, Field(ge=10)]
    """So many of the validation questions, spread evenly over them."""
    methods: tuple[Method, ...]
    """Schedules, objectives, kinds of adapters; the first is what the others are compared with. Empty for no comparison."""
    quantizers: tuple[Method, ...] = ()
    """Ways to put numbers on a grid, likewise."""
    specialists: Annotated[int, Field(ge=0)] = 0
    """At so many of the precisions of 8 bits at most and 32, the narrowest and the widest among them (at all, where there are
    fewer), a model of its own is trained with the whole budget."""

    @check("methods", "quantizers")
    @classmethod
    def _named_once(cls, value: tuple[Method, ...], info: Info) -> tuple[Method, ...]:
        names = [m.name for m in (*info.data.get("methods", ()), *value)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"a list in which every name is another, here and in methods, unlike {given(twice[0])}")
        return value

    @check("quantizers", "specialists")
    @classmethod
    def _compared(cls, value: tuple[Method, ...] | int, info: Info) -> tuple[Method, ...] | int:
        if value and not info.data.get("methods", True):
            raise ValueError(f"{0 if isinstance(value, int) else []}, because no methods are listed to compare with")
        return value


class Named(Section):
    """Configurations by name that the switchable model is judged at."""

    names: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Null for all that need no other bit-widths than `precisions` has."""
    questions: Annotated[int, Field(ge=10)]
    """So many of the validation questions, spread evenly over them, and as many paragraphs for perplexity."""
    norm_bits: BitWidth = 4
    """What C2 answers with layer norms at as well (S4's C9), where it is among the names; 32 for leaving that out."""

    @check("names")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if unknown := [name for name in value or () if name not in NAMED]:
            raise ValueError(f"a list of {', '.join(NAMED)}, which {given(unknown[0])} is not one of")
        return value


class Deployment(Section):
    """The switchable model on integer storage and kernels."""

    precisions: Annotated[tuple[PrecisionField, ...], Field(min_length=1)] | None = None
    """They answer the questions a second time, and are timed: of 8 bits at most; null for all such that are trained."""
    questions: Annotated[int, Field(ge=10)]
    """So many of the validation questions, spread evenly over them."""
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(once)]
    lengths: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(once)]
    """Tokens of the windows that are timed, at each of `batch_sizes`."""


class Generative(Section):
    """Answers written after a prompt instead of marked in the context."""

    questions: Annotated[int, Field(ge=10)]
    max_answer_tokens: Count


class Sensitivity(Section):
    """Layers lowered one at a time."""

    bases: Annotated[tuple[PrecisionField, ...], Field(min_length=1), AfterValidator(once)] | None = None
    """What all other layers are at: some of `precisions`, or 32. The search starts from the first. Null for the widest of
    `precisions` of 8 bits at most (of all, if there is nothing narrower), and 32 where that is one of them."""
    bits: Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1), AfterValidator(once)] | None = None
    """What a layer is lowered to: weight bit-widths of `precisions`, null for all. Each base has those below itself, and a later
    one that of the first."""
    lowered: Annotated[tuple[Literal["both", "weights", "activations"], ...], Field(min_length=1)]
    """What of a layer goes to those bits while the rest of it stays; the search needs both."""
    questions: Annotated[int, Field(ge=10)]
    """So many of the validation questions, from the half that the search may see."""

    @check("lowered")
    @classmethod
    def _both(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "both" not in value:
            raise ValueError("a list that holds 'both', which the search is made of")
        return value


class Learning(Section):
    """Training of a learned allocation."""

    steps: Count
    batch_size: Count
    learning_rate: Annotated[float, Field(gt=0)]
    penalty: Annotated[float, Field(gt=0)]
    """Nats for every time the budget that is expected to be spent beyond it."""


class Search(Section):
    """Allocation of bits under a budget; candidates are the first of `sensitivity.bases` and what it is lowered to. Under
    one of latency they are those of the last."""

    budgets: Annotated[tuple[Annotated[float, Field(ge=2, le=32)], ...], Field(min_length=1)] | None = None
    """Average weight bits; null for those of 8, 6, 5, 4 and 3 that lie within the candidates."""
    draws: Count
    """Random configurations at every budget."""
    questions: Annotated[int, Field(ge=10)]
    """So many of the validation questions, from the half that the search never sees."""
    shares: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] | None = None
    """Budgets of bytes, and of latency as measured, from all at the cheapest candidate (0) to all at the dearest (1)."""
    pairs: Literal["none", "block", "all"] = "none"
    """Which pairs of block × role are lowered together, for a correction of second order."""
    learned: Learning | None = None


class RangeTest(Section):
    """Precision range test: a short training at each precision, from the narrowest up."""

    steps: Annotated[int, Field(ge=2)]
    """Of each training; the learning rate and the batches are those of `switchable`."""
    window: Count
    """Steps at both ends over which the training loss is averaged."""
    threshold: Annotated[float, Field(gt=0)]
    """Nats that the span loss must fall by from the first window to the last for training to count as making progress."""

    @check("window")
    @classmethod
    def _short(cls, value: int, info: Info) -> int:
        if (steps := info.data.get("steps")) and value > steps / 2:
            raise ValueError(f"an integer from 1 to half of steps ({steps})")
        return value


class Sharpness(Section):
    """Loss under random perturbation of the trained weights, filter by filter of their own size."""

    radii: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    """Length of the perturbation as a share of each filter's norm."""
    draws: Count
    """Random directions."""
    questions: Annotated[int, Field(ge=10)]
    """So many of the validation questions, spread evenly over them."""


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
    """What is trained; null for those of the run's `precisions` that have 8 bits at most, if there are two (or else for those
    that are not 32, or all)."""
    untrained: Annotated[tuple[PrecisionField, ...], AfterValidator(once)] = ()
    """Precisions that models without an adapter for each are judged at as well; `precisions` among them change nothing."""
    lowest: PrecisionField | None = None
    """Where cycles start; null for what the range test finds. They end at the widest of `precisions`."""
    cycles: Count
    """Of a whole training."""
    form: Literal["restart", "continuous"] = "restart"
    gradient_bits: BitWidth = FULL
    """Of every training here: 2 to 16, or 32 for floats."""
    second_phase: PrecisionField | None = None
    """What the method two-phase ends at; null for where its cycles start."""
    second_phase_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Of its passes."""
    passes: Count
    seeds: Seeds
    questions: Annotated[int, Field(ge=10)]
    """So many of the validation questions, spread evenly over them."""
    methods: Annotated[tuple[CptMethod, ...], Field(min_length=1), AfterValidator(once)]
    static: Count | None = None
    """At so many of `precisions`, spread from the widest to the narrowest, `static` is trained, a model each; null for all."""
    equal_bitops: Annotated[tuple[CptMethod, ...], AfterValidator(once)] = ()
    """Methods that are trained a second time, for the bit operations that `passes` at the widest precision cost."""
    range_test: RangeTest
    """Where it is made, and what counts as progress."""
    sharpness: Sharpness | None = None
    """Null for none."""

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
