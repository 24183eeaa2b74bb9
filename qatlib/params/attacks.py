"""The section of a params file about attacks and random precision inference. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic import ValidationInfo as Info

from qatlib.arguments import AttackArguments, PrecisionField
from qatlib.params.sections import Count, Section, Seeds, Sources, once, placed
from qatlib.precision import Precision

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
    """Candidates for a word, of a vocabulary or a masked language model."""
    ranking: Literal["attention", "removal", "both"]
    most: Count
    """Words of a question that may be exchanged."""
    questions: Annotated[int, Field(ge=10)]
    """So many of the validation questions, spread evenly over them."""


class Adversarial(Section):
    """Attacks, and random precision inference against static precisions."""

    attack: AttackArguments
    """The PGD that robustness is judged by."""
    epsilons: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=2)]
    """Radii that the same attack is tried at on one static precision; at all but the last, which is so large that nothing should
    survive, static precisions are held against random ones."""
    sets: Annotated[tuple[Annotated[tuple[PrecisionField, ...], AfterValidator(_set_of_two)], ...], Field(min_length=1)]
    """Precisions that random precision inference draws from; the first is the one that finer draws and text attacks face."""
    control: Annotated[tuple[PrecisionField, ...], AfterValidator(_set_of_two)] = (Precision(16, 16), Precision(32, 32))
    """A set whose precisions are alike, so that drawing from it must gain nothing."""
    questions: Annotated[int, Field(ge=10)]
    """So many of the validation questions, spread evenly over them, for the first of `methods`."""
    fewer_questions: Annotated[int, Field(ge=10)]
    """For the other methods, for finer draws and for the checks."""
    methods: Annotated[tuple[RobustMethod, ...], Field(min_length=1), AfterValidator(once)]
    """Trainings, all with one shared adapter; the first is judged in full."""
    passes: Count
    """Of every training; what an adversary takes is not counted."""
    seeds: Seeds
    """Of every training; the first is judged in full, its twin of the next number attacks it from outside."""
    adversary: AttackArguments
    """Of the method adversarial."""
    draws: Count
    """Configurations that are drawn for layers of mixed precision, by the attacker at each step and by the defender."""
    flips: Count
    """Tokens that HotFlip may exchange."""
    noise_rate: Annotated[float, Field(gt=0, le=1)]
    """Share of the words that character noise changes."""
    words: Words | None = None
    shifted: Sources | None = None
    """Shifted or adversarial questions that are answered as they are: as `data.validation`, or null for none."""
