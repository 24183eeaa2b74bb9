"""Options of schedules: which precisions are trained at which step. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from qatlib.arguments import STRICT, PrecisionField, in_a_sentence
from qatlib.checks import whole
from qatlib.precision import Precision


@in_a_sentence
@dataclass(frozen=True, config=STRICT)
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


@in_a_sentence
@dataclass(frozen=True, config=STRICT)
class PhaseArguments:
    """A second phase of a training at one precision for all layers (S2's two-phase CPT)."""

    precision: PrecisionField
    """One of the precisions."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the training's steps, the last ones."""


@in_a_sentence
@dataclass(frozen=True, config=STRICT)
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
        """Forward-backward passes of one step over so many precisions.

        Raises:
            ValueError: the number of precisions is not positive.
        """
        whole(1, precisions=precisions)
        if self.name == "random_per_layer":
            return self.passes or 1
        if self.name == "all":
            return precisions
        return min(self.passes or (4 if self.name == "sandwich" else 1), precisions)
