"""The section about settings that are tried on training paragraphs. Free of torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field
from pydantic import field_validator as check

from qatlib.arguments import Count, Positive, Size
from qatlib.params.experiments import label
from qatlib.params.sections import Questions, Section
from qatlib.params.yaml import given
from qatlib.scheduling import ScheduleArguments

if TYPE_CHECKING:
    from qatlib.params.schema import Params


class Trial(Section):
    """One setting that is tried: learning rate, passes and rank by precision. What it leaves out is that of the run."""

    name: Annotated[str, AfterValidator(label)]
    """Up to 40 lower-case letters, digits, blanks and '-'; not own, which is the run's setting."""
    learning_rate: Positive | None = None
    """Null for that of `switchable.training`."""
    learning_rate_factors: tuple[Positive, ...] | None = None
    """Factors on it, one for each of `precisions`; null for those of `switchable`."""
    schedule: ScheduleArguments | None = None
    """How passes are shared out among the precisions; null for that of `switchable`."""
    ranks: tuple[Size, ...] | None = None
    """Rank of each precision's adapter, scaled by the same alpha / rank as in `lora`; null for the ranks there."""

    def applied(self, params: Params) -> Params:
        """The run's params with this trial's settings."""
        switchable, lora = params.switchable, params.lora
        settings = {key: getattr(self, key) for key in ("learning_rate_factors", "schedule") if getattr(self, key) is not None}
        if self.learning_rate is not None:
            settings["training"] = replace(switchable.training, learning_rate=self.learning_rate)
        if self.ranks is not None:
            scales = (alpha / rank for alpha, rank in zip(lora.alphas, lora.ranks, strict=True))
            alphas = tuple(scale * rank for scale, rank in zip(scales, self.ranks, strict=True))
            lora = lora.model_copy(update={"ranks": self.ranks, "alphas": alphas})
        return params.model_copy(update={"switchable": switchable.model_copy(update=settings), "lora": lora})


class Tuning(Section):
    """Trials of the switchable training, judged on training questions that are held aside and not trained on."""

    questions: Questions
    """About so many training questions, of whole paragraphs; at most half of them."""
    passes: Count
    """Forward-backward passes of each trial, those of base training included."""
    trials: Annotated[tuple[Trial, ...], Field(min_length=1)]
    """Settings that are tried beside the run's own."""

    @check("trials")
    @classmethod
    def _named_once(cls, value: tuple[Trial, ...]) -> tuple[Trial, ...]:
        names = ["own", *(trial.name for trial in value)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"a list in which every name is another and none is own, unlike {given(twice[0])}")
        return value
