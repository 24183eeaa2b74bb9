"""The section of a params file about attacks and random precision inference. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic import ValidationInfo as Info

from qatlib.arguments import AttackArguments, Count, Positive, PrecisionField
from qatlib.params.sections import Questions, Section, Seeds, Sources, once, placed
from qatlib.params.yaml import given
from qatlib.precision import Precision

RobustMethod = Literal["plain", "random", "random pair", "cpt", "consistency", "adversarial"]
"""What notebook 5 knows how to train; `qatlib.studies.robustness` says what each is."""


def _set_of_two(value: tuple[Precision, ...]) -> tuple[Precision, ...]:
    if len({p.w_bits for p in value}) < max(2, len(value)):
        raise ValueError("a list of two or more precisions, each weight bit-width once")
    return value


_Set = Annotated[tuple[PrecisionField, ...], AfterValidator(_set_of_two)]


def _sets_once(value: tuple[tuple[Precision, ...], ...]) -> tuple[tuple[Precision, ...], ...]:
    if twice := [s for i, s in enumerate(value) if set(s) in map(set, value[:i])]:
        raise ValueError(f"a list with each set once, in whatever order, which {given([p.name for p in twice[0]])} is not")
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
    questions: Questions
    """Validation questions, spread evenly over all of them."""


class Adversarial(Section):
    """Attacks, and random precision inference against static precisions."""

    attack: AttackArguments
    """The PGD attack that robustness is judged by."""
    epsilons: Annotated[tuple[Positive, ...], Field(min_length=2), AfterValidator(once)]
    """Radii at which the same attack is tried on one static precision. The last is so large that nothing should survive. At the
    others static precisions are compared with random ones."""
    sets: Annotated[
        tuple[Annotated[tuple[PrecisionField, ...], AfterValidator(_set_of_two)], ...],
        Field(min_length=1),
        AfterValidator(_sets_once),
    ]
    """Precisions that random precision inference draws from. Finer draws and text attacks use the first set."""
    control: _Set = (Precision(16, 16), Precision(32, 32))
    """A set whose precisions are alike, so that drawing from it must gain nothing."""
    questions: Questions
    """Validation questions, spread evenly over all of them, for the first of `methods`."""
    fewer_questions: Questions
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
