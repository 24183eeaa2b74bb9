"""Trainings of switchable models on one base: the run's own training, and variations of it for comparison."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from qatlib.arguments import ObjectiveArguments, QuantizerArguments
from qatlib.attacks.embedding import attack_embeddings
from qatlib.lora import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.params.experiments import Method
from qatlib.params.sections import AdapterStart
from qatlib.params.switchable import BaseTraining, Switchable
from qatlib.precision import FULL, LayerInfo, Precision, widest_first
from qatlib.qa.calibration import start_adapters
from qatlib.qa.parts import spread
from qatlib.schedule import Schedule, at_passes, make_schedule
from qatlib.scheduling import ScheduleArguments
from qatlib.seeds import stream
from qatlib.studies.study import Study
from qatlib.training import Adversary


@dataclass(frozen=True)
class Recipe:
    """One training of a switchable model."""

    name: str
    """The model's name in result files."""
    precisions: tuple[Precision, ...]
    settings: Switchable
    seed: int
    judged: tuple[Precision, ...] = ()
    """Further precisions that it is judged at, beside those it is trained at. Clipping is calibrated for them too."""
    start: AdapterStart | None = None
    """How its adapters start; None for `lora.start`."""


class Trainings:
    """Trains models on the saved teacher of a study.

    Args:
        base: directory of the saved teacher. Every training starts from it, and objectives use it as teacher.
    """

    def __init__(self, study: Study, base: Path) -> None:
        self.study, self.params, self.base = study, study.params, base
        self._last: tuple[Any, SwitchableModel] | None = None
        self._started: tuple[Any, dict[str, Tensor]] | None = None

    @property
    def own(self) -> Recipe:
        """The training that the params' `switchable` describes."""
        return Recipe("switchable", self.params.precisions, self.params.switchable, self.params.seed)

    def variations(self, methods: Sequence[Method]) -> list[Recipe]:
        """One training per method and seed, with the number of passes in `comparisons`.

        In every method, base training gets the same share of them as in the params' `switchable`. So methods with one quantizer
        have one base.
        """
        precisions = self.params.precisions
        return [
            Recipe(m.name, precisions, self._within(m.applied(self.params.switchable), len(precisions)), seed, start=m.start)
            for m in methods
            for seed in self.params.comparisons.seeds
        ]

    def specialists(self) -> list[Recipe]:
        """Trainings of the first method at one precision only: for some precisions and each seed, with the whole budget.

        A specialist has a base training if its precision is one of those of base training. It is for this precision alone too.
        """
        comparisons, always = self.params.comparisons, ScheduleArguments("all")
        first = comparisons.methods[0].applied(self.params.switchable)
        alone = first.model_copy(update={"schedule": always, "learning_rate_factors": None})

        def settings(p: Precision) -> Switchable:
            base = first.base_training if first.base_training and p in first.base_training.precisions else None
            own = base and base.model_copy(update={"precisions": (p,), "schedule": always})
            return self._within(alone.model_copy(update={"base_training": own}), 1)

        narrowest_first = widest_first(self.params.specialized)[::-1]
        chosen = widest_first(spread(narrowest_first, comparisons.specialists))
        return [Recipe("specialist", (p,), settings(p), seed) for p in chosen for seed in comparisons.seeds]

    def _within(self, settings: Switchable, precisions: int) -> Switchable:
        """Settings at the budget of `comparisons`."""
        share = self.params.switchable.base_share(len(self.params.precisions))
        return at_budget(settings, precisions, self.params.comparisons.passes, share)

    def plain(self, schedule: ScheduleArguments, precisions: int, passes: int, **changes: Any) -> Switchable:
        """The settings of `switchable` at a budget, with another schedule and the average loss. There is a single learning rate
        and no base training."""
        update = {"schedule": schedule, "objective": ObjectiveArguments("average"), "learning_rate_factors": None}
        update |= {"base_training": None, **changes}
        return at_budget(self.params.switchable.model_copy(update=update), precisions, passes)

    def quantizer(self, settings: Switchable) -> QuantizerArguments:
        """The quantizer of `settings`, or the run's quantizer if there is none."""
        return settings.quantizer or self.params.quantizer

    def prepared(self, recipe: Recipe) -> SwitchableModel:
        """The untrained model of a recipe: its frozen base with fresh adapters, or the teacher with all weights trainable.

        An adapter has the rank, alpha and dropout of its precision in the params. Other precisions use those of the first.
        """
        lora, model = self.params.lora, self.frozen_base(recipe)
        columns = zip(self.params.precisions, lora.ranks, lora.alphas, lora.dropouts, strict=True)
        specs = {p: LoraSpec(rank, alpha, dropout) for p, rank, alpha, dropout in columns}
        first = next(iter(specs.values()))
        torch.manual_seed(stream(recipe.seed, "adapters"))
        match recipe.settings.adapters:
            case "none":
                model.unfreeze_base(held=recipe.precisions)
            case "shared":
                model.add_adapters({SHARED: first})
            case "separate":
                model.add_adapters({p.w_bits: specs.get(p, first) for p in recipe.precisions})
        if (recipe.start or lora.start) == "output_error":
            self._start(model)
        if model.quantizer.learned_steps:
            model.learn_steps(recipe.precisions)
        return model

    def frozen_base(self, recipe: Recipe) -> SwitchableModel:
        """What adapters are trained on: the teacher, after its base training if there is one, with quantizer, codes and clips.

        They take minutes for SmolLM2, so the last model is kept, and a copy is returned.
        """
        quantizer = self.quantizer(recipe.settings)
        if recipe.settings.adapters == "none":  # codes that compensate are those of a frozen weight
            quantizer = replace(quantizer, rounding="nearest")
        precisions = tuple(dict.fromkeys((*recipe.precisions, *recipe.judged)))
        name = base_name(recipe, quantizer)
        key = name, quantizer, precisions
        if self._last is None or self._last[0] != key:
            model = self.study.saved_model(self.base)
            if recipe.settings.base_training:
                self._train_base(model, recipe.settings.base_training, quantizer, name, recipe.seed)
            self.study.quantize(model, quantizer, precisions)
            for layer in model.layers:
                for w_bits in {p.w_bits for p in precisions} - {FULL}:
                    layer.codes(w_bits)
            self._last = key, model
        return copy.deepcopy(self._last[1])

    def bases(self, recipe: Recipe) -> Iterator[tuple[str, SwitchableModel]]:
        """The frozen base before and after its base training, by name; nothing without base training. Both have the quantizer."""
        if recipe.settings.base_training:
            before = recipe.settings.model_copy(update={"base_training": None})
            yield "teacher_base", self.frozen_base(replace(recipe, settings=before))
            yield "trained_base", self.frozen_base(recipe)

    def _train_base(
        self, model: SwitchableModel, base: BaseTraining, quantizer: QuantizerArguments, name: str, seed: int
    ) -> None:
        """Train all weights of a teacher under `name`, or read them from a finished checkpoint. The windows come in an order of
        their own; the loss is measured at all of the params' precisions."""
        self.study.quantize(model, replace(quantizer, rounding="nearest"), self.params.precisions)
        model.unfreeze_base(held=base.precisions)
        own = stream(seed, "base training")
        self.study.fit(
            model,
            base.training,
            name,
            make_schedule(base.schedule, base.precisions, model.infos, seed=own, steps=base.training.steps),
            self.params.precisions,
            seed=own,
            objective=base.objective,
            teacher=self._teacher(base.objective),
        )
        model.freeze_base()

    def _teacher(self, objective: ObjectiveArguments) -> SwitchableModel | None:
        return self.study.saved_model(self.base) if objective.rule.needs_teacher else None

    def _start(self, model: SwitchableModel) -> None:
        """Start adapters at the correction of their layer's error. It takes minutes too, so the last one is kept as well."""
        assert self._last is not None
        widths = tuple(f".adapters.{w_bits}." for w_bits in model.lora if w_bits not in (SHARED, FULL))
        key = self._last[0], tuple(model.lora.items())
        own = {name: p.data for name, p in model.named_parameters() if any(width in name for width in widths)}
        if self._started is None or self._started[0] != key:
            start_adapters(model, self.study.calibration_features, "starting adapters")
            self._started = key, {name: value.clone() for name, value in own.items()}
        for name, value in self._started[1].items():
            own[name].copy_(value)

    @staticmethod
    def schedule(recipe: Recipe, layers: Sequence[LayerInfo]) -> Schedule:
        """The schedule of a recipe."""
        steps = recipe.settings.training.steps
        return make_schedule(recipe.settings.schedule, recipe.precisions, layers, seed=recipe.seed, steps=steps)

    def passes(self, recipe: Recipe, layers: Sequence[LayerInfo]) -> dict[Precision, float]:
        """Number of training passes that a layer spends at each precision, mean over the layers."""
        schedule, steps = self.schedule(recipe, layers), range(recipe.settings.training.steps)
        stood = Counter(p for step in steps for configuration in schedule(step) for p in configuration.values())
        return {p: stood[p] / len(layers) for p in recipe.precisions}

    def fit(self, model: SwitchableModel, recipe: Recipe, probed: bool = True) -> pd.DataFrame:
        """Train a prepared model and return its metrics, as `Study.fit` does.

        Args:
            probed: whether checkpoints measure the validation loss at every precision.
        """
        settings, precisions = recipe.settings, recipe.precisions
        factors = settings.learning_rate_factors
        metrics = self.study.fit(
            model,
            settings.training,
            file_name(recipe),
            self.schedule(recipe, model.infos),
            precisions if probed else (),
            seed=recipe.seed,
            objective=settings.objective,
            teacher=self._teacher(settings.objective),
            learning_rate_factors=dict(zip(precisions, factors, strict=True)) if factors else None,
            adversary=self._adversary(model, recipe),
        )
        model.freeze_base()
        return metrics

    def _adversary(self, model: SwitchableModel, recipe: Recipe) -> Adversary | None:
        attack = recipe.settings.adversary
        if attack is None:
            return None
        seed = stream(recipe.seed, "adversary of a training")
        return lambda batch, at: attack_embeddings(model, batch, attack, lambda query: [at], seed)[0]

    def each(self, recipes: Iterable[Recipe], probed: bool = False) -> Iterator[tuple[Recipe, SwitchableModel, pd.DataFrame]]:
        """Train every recipe, in order. Recipes do not depend on one another; a finished one is read from its checkpoint.

        Args:
            probed: as in `fit`.

        Yields:
            The recipe, its trained model and its metrics. One model is in memory at a time, unless the caller keeps it.
        """
        for recipe in recipes:
            model = self.prepared(recipe)
            metrics = self.fit(model, recipe, probed)
            yield recipe, model, metrics

    def compared(self, recipes: Sequence[Recipe]) -> pd.DataFrame:
        """Train every recipe and score it on the questions of `comparisons`, at the precisions it was trained for.

        Returns:
            Scores in the schema of `qatlib.judging.results`.
        """
        found = []
        for recipe, model, _ in self.each(recipes):
            scores = self.study.scores(model, file_name(recipe), recipe.precisions, self.params.comparisons.questions)
            found.append(scores.assign(model=recipe.name, seed=recipe.seed))
        return pd.concat(found, ignore_index=True)


def at_budget(settings: Switchable, precisions: int, passes: int, base_share: float = 0.0) -> Switchable:
    """The same settings with as many steps as a budget of passes allows.

    Args:
        base_share: the share of the passes that a base training gets. It gets one step at least, and leaves one.
    """
    base, left = settings.base_training, passes
    if base:
        most = passes - settings.schedule.passes_a_step(precisions)
        given = max(base.passes_a_step, min(round(base_share * passes), most))
        training = at_passes(base.training, base.schedule, len(base.precisions), given)
        base = base.model_copy(update={"training": training})
        left -= base.passes
    training = at_passes(settings.training, settings.schedule, precisions, left)
    return settings.model_copy(update={"training": training, "base_training": base})


def base_name(recipe: Recipe, quantizer: QuantizerArguments) -> str:
    """The name of a base training's files, the same for all recipes that share one: its precisions, its seed, and a hash of its
    settings and of the quantizer. Empty if there is none."""
    base = recipe.settings.base_training
    if base is None:
        return ""
    seen = replace(quantizer, rounding="nearest", learned_steps=False)  # what the training makes of it
    said = json.dumps([base.model_dump(mode="json"), asdict(seen)], sort_keys=True)
    widths = "-".join(p.name for p in base.precisions)
    return f"base_{widths}_seed{recipe.seed}_{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def file_name(recipe: Recipe) -> str:
    """The name of a training's files."""
    if recipe.name == "switchable":
        return recipe.name
    alone = f"_{recipe.precisions[0].name}" if len(recipe.precisions) == 1 else ""
    return f"{recipe.name}{alone}_seed{recipe.seed}".replace(" ", "_")
