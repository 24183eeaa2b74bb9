"""The sections of a params file about what is trained side by side, judged, lowered and searched. Free of torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic import ValidationInfo as Info
from pydantic import field_validator as check

from qatlib.arguments import BitWidth, Count, ObjectiveArguments, Positive, PrecisionField, Size
from qatlib.named import NAMED
from qatlib.params.sections import AdapterStart, DynamicQuantizer, Questions, Section, Seeds, once
from qatlib.params.switchable import Adapters, Switchable
from qatlib.params.yaml import given
from qatlib.precision import FULL_PRECISION, Precision
from qatlib.scheduling import ScheduleArguments


class Comparison(Section):
    """Size of the comparison of quantizers."""

    bits: Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1), AfterValidator(once)]
    """Bit-widths at which quantizers are compared, each once."""
    questions: Questions
    """Validation questions, spread evenly over all of them."""
    paragraphs: Annotated[int, Field(ge=2, le=1_000_000_000)]
    """Paragraphs, of those that perplexity is measured on, spread evenly over all of them."""


def _without_full(value: tuple[Precision, ...]) -> tuple[Precision, ...]:
    if twice := [p.name for p in value if value.count(p) > 1 or p == FULL_PRECISION]:
        raise ValueError(f"a list with each precision once and without 32, the teacher's own, unlike {given(twice[0])}")
    return value


Quantized = Annotated[tuple[PrecisionField, ...], Field(min_length=1), AfterValidator(_without_full)]


class Ablation(Section):
    """Size of the ablation of the quantizer, on the teacher. It measures about two schemes for each part of the quantizer."""

    quantizer: DynamicQuantizer
    """The best one. Its parts are the options in which it differs from the default: min-max, nearest, no rotation."""
    rank: Size
    """Rank of the adapters whose start is one of the parts."""
    precisions: Quantized
    """Each once, without 32, which the others are compared with."""
    questions: Questions
    """Validation questions, spread evenly over all of them."""
    paragraphs: Annotated[int, Field(ge=2, le=1_000_000_000)]
    """Paragraphs, of those that perplexity is measured on, spread evenly over all of them."""


class PostTraining(Section):
    """Precisions at which the teacher is evaluated without further training."""

    precisions: Quantized
    """Each once, without 32, which is the teacher's own. All of the run's `precisions` but 32 must be among them."""
    comparison: Comparison
    """Size of the comparison of quantizers, which takes many evaluations."""
    ablation: Ablation | None = None
    """What each part of a quantizer is worth without training; null for no such comparison."""


def label(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9 -]{0,39}", name) or name in ("switchable", "specialist"):
        raise ValueError("a name of up to 40 lower-case letters, digits, blanks and '-', but not switchable or specialist")
    return name


class Method(Section):
    """One line of a comparison: what differs from `switchable`. All else is the same."""

    name: Annotated[str, AfterValidator(label)]
    """Up to 40 lower-case letters, digits, blanks and '-'. Each name once in `methods` and `quantizers` together."""
    schedule: ScheduleArguments | None = None
    """Null for the schedule of `switchable`."""
    objective: ObjectiveArguments | None = None
    """Null for the objective of `switchable`."""
    adapters: Adapters | None = None
    """Null for the adapters of `switchable`. `none` leaves its base training out as well: all weights are trained anyway."""
    base_training: bool = True
    """False leaves out the base training of `switchable`, if it has one; the adapters then get its passes."""
    quantizer: DynamicQuantizer | None = None
    """Null for the quantizer of `switchable`."""
    start: AdapterStart | None = None
    """Null for `lora.start`."""

    def applied(self, switchable: Switchable) -> Switchable:
        """The settings of `switchable` with what this method changes."""
        own = type(switchable).model_fields.keys() - {"base_training"}
        changes = {key: value for key, value in self if key in own and value is not None}
        if not self.base_training or self.adapters == "none":
            changes["base_training"] = None
        return switchable.model_copy(update=changes)


class Comparisons(Section):
    """Trainings side by side, each at the same budget of forward-backward passes and with every seed."""

    passes: Count
    """Forward-backward passes of each training."""
    seeds: Seeds
    """Each training runs once with each seed. A claim about training takes three."""
    questions: Questions
    """Validation questions, spread evenly over all of them."""
    methods: tuple[Method, ...]
    """Trainings that differ from `switchable` in schedule, objective or adapters. The others are compared with the first. Empty
    for no comparison."""
    quantizers: tuple[Method, ...] = ()
    """Trainings that differ from `switchable` in the quantizer."""
    specialists: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Number of single-precision baselines, each trained with the whole budget. Their precisions are spread from the widest to
    the narrowest of those with at most 8 bits and 32 (of all, if there are none)."""

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
    """The studies' configurations, by name, at which the switchable model is judged."""

    names: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(once)] | None = None
    """Names of `qatlib.named`, such as `C14` and `mixed8648`. Null for all whose bit-widths are in `precisions`."""
    questions: Questions
    """Validation questions, spread evenly over all of them, and as many paragraphs for perplexity."""
    norm_bits: BitWidth = 4
    """Where C2 is among the names, it is judged with layer norms at this width as well (S4's C9); 32 for not."""

    @check("names")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if unknown := [name for name in value or () if name not in NAMED]:
            raise ValueError(f"a list of {', '.join(NAMED)}, which {given(unknown[0])} is not one of")
        return value


class Deployment(Section):
    """The switchable model on integer storage and kernels."""

    precisions: Annotated[tuple[PrecisionField, ...], Field(min_length=1), AfterValidator(once)] | None = None
    """What is deployed, answers the questions again, and is timed: precisions of at most 8 bits. Null for all of those that are
    trained."""
    questions: Questions
    """Validation questions, spread evenly over all of them."""
    batch_sizes: Annotated[tuple[Size, ...], Field(min_length=1), AfterValidator(once)]
    """Windows in a batch that is timed."""
    lengths: Annotated[tuple[Size, ...], Field(min_length=1), AfterValidator(once)]
    """Tokens in a window that is timed, at each of `batch_sizes`."""


class Generative(Section):
    """Answers written after a prompt instead of marked in the context."""

    questions: Questions
    """Validation questions, spread evenly over all of them."""
    max_answer_tokens: Size
    """Tokens in the longest answer."""


class Sensitivity(Section):
    """The sweep: one block × role is lowered at a time."""

    bases: Annotated[tuple[PrecisionField, ...], Field(min_length=1), AfterValidator(once)] | None = None
    """Precision of all other layers: some of `precisions`, or 32. The search starts from the first. Null for the widest of
    `precisions` with at most 8 bits (of all, if no other is narrower), and for 32 where it is one of them."""
    bits: Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1), AfterValidator(once)] | None = None
    """Weight bit-widths of `precisions` that a layer is lowered to; null for all. Only those below a base count for it. For a
    later base the bits of the first one count as well."""
    lowered: Annotated[tuple[Literal["both", "weights", "activations"], ...], Field(min_length=1), AfterValidator(once)]
    """What of a layer is lowered while the rest of it stays. The search needs `both`."""
    questions: Questions
    """Validation questions, from the half that the search may see."""

    @check("lowered")
    @classmethod
    def _both(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "both" not in value:
            raise ValueError("a list that holds 'both', which the search is made of")
        return value


class Learning(Section):
    """Training of a learned allocation."""

    steps: Count
    """Optimizer steps."""
    batch_size: Size
    """Windows in a batch."""
    learning_rate: Positive
    """Learning rate of the choice between bit-widths; the model stays frozen."""
    penalty: Positive
    """Nats added to the loss for each multiple of the budget by which the expected cost exceeds it."""


class Search(Section):
    """Allocation of bits under a budget. The candidates are the first of `sensitivity.bases` and the bits it is lowered to; under
    a budget of latency, the last base and its bits."""

    budgets: Annotated[tuple[Annotated[float, Field(ge=2, le=32)], ...], Field(min_length=1), AfterValidator(once)] | None = None
    """Average weight bits. Null for those of 8, 6, 5, 4 and 3 that lie within the candidates."""
    draws: Count
    """Random configurations at every budget."""
    questions: Questions
    """Validation questions, from the half that the search never sees."""
    shares: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1), AfterValidator(once)] | None = None
    """Budgets of bytes, and of measured latency, between all layers at the cheapest candidate (0) and all at the most expensive
    one (1). Null for none."""
    pairs: Literal["none", "block", "all"] = "none"
    """Pairs of block × role that are lowered together, for a second-order correction."""
    learned: Learning | None = None
    """A learned allocation: a softmax over bit-widths, trained under a budget penalty. Null for none."""
