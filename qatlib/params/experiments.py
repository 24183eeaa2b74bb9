"""The sections of a params file about what is trained side by side, judged, lowered and searched. Free of torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field
from pydantic import ValidationInfo as Info
from pydantic import field_validator as check

from qatlib.arguments import AttackArguments, BitWidth, ObjectiveArguments, PrecisionField, ScheduleArguments
from qatlib.named import NAMED
from qatlib.params.sections import Adapters, Count, DynamicQuantizer, Section, Sources, Switchable, placed
from qatlib.params.yaml import given
from qatlib.precision import Precision

T = TypeVar("T")


def once(value: tuple[T, ...]) -> tuple[T, ...]:
    """The values, each of which must stand once."""
    if twice := [x for x in value if value.count(x) > 1]:
        raise ValueError(f"a list with each value once, which {given(getattr(twice[0], 'name', twice[0]))} is not")
    return value


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(once)]


def _label(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9 -]{0,39}", name) or name in ("switchable", "specialist"):
        raise ValueError("a name of up to 40 lower-case letters, digits, blanks and '-', but not switchable or specialist")
    return name


class Method(Section):
    """One line of a comparison: what differs from `switchable`. All else is the same."""

    name: Annotated[str, AfterValidator(_label)]
    """Up to 40 lower-case letters, digits, blanks and '-'. Each name once in `methods` and `quantizers` together."""
    schedule: ScheduleArguments | None = None
    """Null for the schedule of `switchable`."""
    objective: ObjectiveArguments | None = None
    """Null for the objective of `switchable`."""
    adapters: Adapters | None = None
    """Null for the adapters of `switchable`."""
    quantizer: DynamicQuantizer | None = None
    """Null for the quantizer of `switchable`."""

    def applied(self, switchable: Switchable) -> Switchable:
        """The settings of `switchable` with what this method changes."""
        changes = {key: value for key, value in self if key != "name" and value is not None}
        return switchable.model_copy(update=changes)


class Comparisons(Section):
    """Trainings side by side, each at the same budget of forward-backward passes and with every seed."""

    passes: Count
    """Forward-backward passes of each training."""
    seeds: Seeds
    """Each training runs once with each seed. A claim about training takes three."""
    questions: Annotated[int, Field(ge=10)]
    """Validation questions, spread evenly over all of them."""
    methods: tuple[Method, ...]
    """Trainings that differ from `switchable` in schedule, objective or adapters. The others are compared with the first. Empty
    for no comparison."""
    quantizers: tuple[Method, ...] = ()
    """Trainings that differ from `switchable` in the quantizer."""
    specialists: Annotated[int, Field(ge=0)] = 0
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

    names: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of `qatlib.named`, such as `C14` and `mixed8648`. Null for all whose bit-widths are in `precisions`."""
    questions: Annotated[int, Field(ge=10)]
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

    precisions: Annotated[tuple[PrecisionField, ...], Field(min_length=1)] | None = None
    """What is deployed, answers the questions again, and is timed: precisions of at most 8 bits. Null for all of those that are
    trained."""
    questions: Annotated[int, Field(ge=10)]
    """Validation questions, spread evenly over all of them."""
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(once)]
    """Windows in a batch that is timed."""
    lengths: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(once)]
    """Tokens in a window that is timed, at each of `batch_sizes`."""


class Generative(Section):
    """Answers written after a prompt instead of marked in the context."""

    questions: Annotated[int, Field(ge=10)]
    """Validation questions, spread evenly over all of them."""
    max_answer_tokens: Count
    """Tokens in the longest answer."""


class Sensitivity(Section):
    """The sweep: one block × role is lowered at a time."""

    bases: Annotated[tuple[PrecisionField, ...], Field(min_length=1), AfterValidator(once)] | None = None
    """Precision of all other layers: some of `precisions`, or 32. The search starts from the first. Null for the widest of
    `precisions` with at most 8 bits (of all, if no other is narrower), and for 32 where it is one of them."""
    bits: Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1), AfterValidator(once)] | None = None
    """Weight bit-widths of `precisions` that a layer is lowered to; null for all. Only those below a base count for it. For a
    later base the bits of the first one count as well."""
    lowered: Annotated[tuple[Literal["both", "weights", "activations"], ...], Field(min_length=1)]
    """What of a layer is lowered while the rest of it stays. The search needs `both`."""
    questions: Annotated[int, Field(ge=10)]
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
    batch_size: Count
    """Windows in a batch."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Learning rate of the choice between bit-widths; the model stays frozen."""
    penalty: Annotated[float, Field(gt=0)]
    """Nats added to the loss for each multiple of the budget by which the expected cost exceeds it."""


class Search(Section):
    """Allocation of bits under a budget. The candidates are the first of `sensitivity.bases` and the bits it is lowered to; under
    a budget of latency, the last base and its bits."""

    budgets: Annotated[tuple[Annotated[float, Field(ge=2, le=32)], ...], Field(min_length=1)] | None = None
    """Average weight bits. Null for those of 8, 6, 5, 4 and 3 that lie within the candidates."""
    draws: Count
    """Random configurations at every budget."""
    questions: Annotated[int, Field(ge=10)]
    """Validation questions, from the half that the search never sees."""
    shares: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] | None = None
    """Budgets of bytes, and of measured latency, between all layers at the cheapest candidate (0) and all at the most expensive
    one (1). Null for none."""
    pairs: Literal["none", "block", "all"] = "none"
    """Pairs of block × role that are lowered together, for a second-order correction."""
    learned: Learning | None = None
    """A learned allocation: a softmax over bit-widths, trained under a budget penalty. Null for none."""


RobustMethod = Literal["plain", "random", "random pair", "cpt", "consistency", "adversarial"]
"""What notebook 5 knows how to train; `qatlib.studies.robustness` says what each is."""


def _set_of_two(value: tuple[Precision, ...]) -> tuple[Precision, ...]:
    if len({p.w_bits for p in value}) < max(2, len(value)):
        raise ValueError("a list of two or more precisions, each weight bit-width once")
    return value


def _masked_lm(value: str, info: Info) -> str:
    if value in ("synonyms", "vocabulary"):
        return value
    if (found := placed(value, info)) is None:
        raise ValueError("'synonyms', 'vocabulary', or a masked language model as 'hub:ID' or 'dir:PATH'")
    return found


class Words(Section):
    """QA-Attack: words of the context exchanged for others."""

    candidates: Annotated[str, AfterValidator(_masked_lm)]
    """`synonyms` (WordNet), `vocabulary` (the embedded data's own words), or a masked language model, `hub:ID` or `dir:PATH`."""
    count: Count
    """Candidates for each word, from a vocabulary or a masked language model."""
    ranking: Literal["attention", "removal", "both"]
    """How the words that an answer depends on are found: by attention, by removing each word, or by both."""
    most: Count
    """Words of one question's context that may be exchanged."""
    questions: Annotated[int, Field(ge=10)]
    """Validation questions, spread evenly over all of them."""


class Adversarial(Section):
    """Attacks, and random precision inference against static precisions."""

    attack: AttackArguments
    """The PGD attack that robustness is judged by."""
    epsilons: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=2)]
    """Radii at which the same attack is tried on one static precision. The last is so large that nothing should survive. At the
    others static precisions are compared with random ones."""
    sets: Annotated[tuple[Annotated[tuple[PrecisionField, ...], AfterValidator(_set_of_two)], ...], Field(min_length=1)]
    """Precisions that random precision inference draws from. Finer draws and text attacks use the first set."""
    control: Annotated[tuple[PrecisionField, ...], AfterValidator(_set_of_two)] = (Precision(16, 16), Precision(32, 32))
    """A set whose precisions are alike, so that drawing from it must gain nothing."""
    questions: Annotated[int, Field(ge=10)]
    """Validation questions, spread evenly over all of them, for the first of `methods`."""
    fewer_questions: Annotated[int, Field(ge=10)]
    """Questions for the other methods, for finer draws and for the checks."""
    methods: Annotated[tuple[RobustMethod, ...], Field(min_length=1), AfterValidator(once)]
    """Trainings, all with one shared adapter; the first is judged in full. `plain` trains at 32 bits; the others at random
    precisions of all sets. `random pair` and `consistency` draw two a step, and under `consistency` the narrower learns from the
    wider. `cpt` cycles. `adversarial` trains on attacked input."""
    passes: Count
    """Forward-backward passes of each training, without those of an adversary."""
    seeds: Seeds
    """Seeds of each training. The first is judged in full; a model trained with the next number attacks it by transfer."""
    adversary: AttackArguments
    """The attack in the training of the method adversarial."""
    draws: Count
    """Configurations drawn where layers differ in precision, by the attacker at each step and by the defender. A believable
    evaluation takes 20."""
    flips: Count
    """Tokens that HotFlip may exchange."""
    noise_rate: Annotated[float, Field(gt=0, le=1)]
    """Share of the words that character noise changes."""
    words: Words | None = None
    """QA-Attack: words of the context are exchanged. Null for none."""
    shifted: Sources | None = None
    """Other questions that are answered as they are, given as `data.validation`; null for none."""
