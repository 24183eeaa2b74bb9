"""The section about settings that are tried on training paragraphs. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic import field_validator as check

from qatlib.arguments import Count, Positive, Size
from qatlib.params.experiments import label
from qatlib.params.sections import LoraSettings, Questions, Section
from qatlib.params.switchable import Switchable, misfit
from qatlib.params.yaml import given
from qatlib.precision import Precision
from qatlib.scheduling import ScheduleArguments


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

    def settings(self, switchable: Switchable) -> Switchable:
        """The settings of `switchable` with what this trial changes."""
        changes = {key: value for key, value in self if key in ("learning_rate_factors", "schedule") and value is not None}
        if self.learning_rate is not None:
            changes["training"] = replace(switchable.training, learning_rate=self.learning_rate)
        return switchable.model_copy(update=changes)

    def adapters(self, lora: LoraSettings) -> LoraSettings:
        """The adapters of `lora` with the ranks of this trial."""
        if self.ranks is None:
            return lora
        columns = zip(lora.alphas, lora.ranks, self.ranks, strict=True)
        alphas = tuple(alpha / before * rank for alpha, before, rank in columns)
        return lora.model_copy(update={"ranks": self.ranks, "alphas": alphas})


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


def unfit(tuning: Tuning, switchable: Switchable, precisions: Sequence[Precision]) -> tuple[str, Any, str] | None:
    """The key, the value and what is allowed of the first setting that `precisions` or the number of passes rule out."""
    count = len(precisions)
    for i, trial in enumerate(tuning.trials):
        for key in ("ranks", "learning_rate_factors"):
            values = getattr(trial, key)
            if values is not None and len(values) != count:
                return f"trials[{i}].{key}", list(values), f"a list of {count} values, one for each of precisions, or null"
        settings = trial.settings(switchable)
        if wrong := misfit(settings, precisions):
            return f"trials[{i}].{wrong[0]}", *wrong[1:]
        if (cost := settings.least_passes(count)) > tuning.passes:
            return "passes", tuning.passes, f"an integer of at least {cost}, what a step of {trial.name} costs"
    return None
