"""The section about the switchable model's training, and what its precisions rule out in it. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from qatlib.arguments import OBJECTIVES, AttackArguments, ObjectiveArguments, Positive, PrecisionField, TrainingArguments
from qatlib.params.sections import DynamicQuantizer, Section, once
from qatlib.precision import Precision
from qatlib.scheduling import ScheduleArguments

Adapters = Literal["separate", "shared", "none"]


class BaseTraining(Section):
    """Training of all weights of a copy of the teacher at narrow precisions, where the rank of adapters is the limit. Then the
    base is frozen. While it is trained, codes are rounded to nearest. Its passes count in every budget, beside the adapters'."""

    precisions: Annotated[tuple[PrecisionField, ...], Field(min_length=1), AfterValidator(once)]
    """Some of the run's `precisions`."""
    schedule: ScheduleArguments
    """Over the precisions above."""
    objective: ObjectiveArguments
    training: TrainingArguments
    """Length, batches and learning rate of the training of all weights."""

    @property
    def passes_a_step(self) -> int:
        """Forward-backward passes of one step."""
        return self.schedule.passes_a_step(len(self.precisions))

    @property
    def passes(self) -> int:
        """Forward-backward passes of the whole training."""
        return self.training.steps * self.passes_a_step


class Switchable(Section):
    """Training of the switchable model: which configurations a step sees, what it minimises, and how fast it learns."""

    schedule: ScheduleArguments
    objective: ObjectiveArguments
    adapters: Adapters = "separate"
    """`separate`: one adapter for each weight bit-width. `shared`: one for all of them, with the first rank, alpha and dropout of
    `lora`. `none`: all weights are trained instead."""
    base_training: BaseTraining | None = None
    """Training of all weights before there are adapters; null for none."""
    quantizer: DynamicQuantizer | None = None
    """Quantizer of the switchable model; null for the run's `quantizer`."""
    learning_rate_factors: tuple[Positive, ...] | None = None
    """Factors on the learning rate, one for each of `precisions`; null for none."""
    adversary: AttackArguments | None = None
    """Attack that perturbs every training batch, at the configuration that the batch is trained at; null for none."""
    training: TrainingArguments
    """Length, batches and learning rate of the training."""

    def least_passes(self, precisions: int) -> int:
        """Forward-backward passes of one step of everything that is trained, in a model of so many precisions."""
        return self.schedule.passes_a_step(precisions) + (self.base_training.passes_a_step if self.base_training else 0)

    def base_share(self, precisions: int) -> float:
        """The share of all forward-backward passes that the base training takes, in a model of so many precisions."""
        own, base = self.training.steps * self.schedule.passes_a_step(precisions), self.base_training
        return base.passes / (base.passes + own) if base else 0.0


def misfit(switchable: Switchable, precisions: Sequence[Precision]) -> tuple[str, Any, str] | None:
    """The key, the value and what is allowed of the first setting that `precisions` rule out."""
    base, factors, count = switchable.base_training, switchable.learning_rate_factors, len(precisions)
    if not count:  # wrong themselves
        return None
    if base and switchable.adapters == "none":
        return "base_training", base.model_dump(mode="json"), "null, because adapters is 'none', which trains all weights anyway"
    if base and (unknown := [p.name for p in base.precisions if p not in precisions]):
        allowed = f"a list of some of precisions, which {unknown[0]} is not"
        return "base_training.precisions", [p.name for p in base.precisions], allowed
    if base and (wrong := _unfit(base, base.precisions, "base_training.precisions")):
        return f"base_training.{wrong[0]}", *wrong[1:]
    if wrong := _unfit(switchable, precisions, "precisions"):
        return wrong
    if factors is not None and len(factors) != count:
        return "learning_rate_factors", list(factors), f"a list of {count} values, one for each of precisions, or null"
    return None


def _unfit(section: Switchable | BaseTraining, precisions: Sequence[Precision], of: str) -> tuple[str, Any, str] | None:
    """As `misfit`, of a schedule, an objective and a training over precisions that are called `of`."""
    schedule, objective, count = section.schedule, section.objective, len(precisions)
    if schedule.name == "random_uniform" and (schedule.passes or 1) > count:
        allowed = f"an integer from 1 to {count}, since random_uniform draws each of {of} once a step"
        return "schedule.passes", schedule.passes, allowed
    if unknown := [p.name for p in schedule.pattern or () if p not in precisions]:
        return "schedule.pattern", [p.name for p in schedule.pattern or ()], f"a list of {of}, which {unknown[0]} is not of"
    ends = [*(schedule.cosine and schedule.cosine.between or ())]
    if not {*ends} <= {*precisions}:
        return "schedule.cosine.between", [p.name for p in ends], f"two of {of}"
    if schedule.then and schedule.then.precision not in precisions:
        return "schedule.then.precision", schedule.then.precision.name, f"one of {of}"
    if schedule.name == "progressive" and section.training.steps < count:
        return "training.steps", section.training.steps, f"at least {count}, a step for each of {of}"
    if objective.rule.needs_several and schedule.passes_a_step(count) < 2:
        alone = [repr(name) for name, rule in OBJECTIVES.items() if not rule.needs_several]
        allowed = f"{', '.join(alone[:-1])} or {alone[-1]}, because {schedule.name} trains one configuration a step here"
        return "objective.name", objective.name, allowed
    return None
