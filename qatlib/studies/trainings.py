"""Trainings of switchable models on one base: the run's own training, and variations of it for comparison."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from qatlib.params.sections import AdapterStart, Switchable
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
        self._last: tuple[QuantizerArguments, tuple[Precision, ...], SwitchableModel] | None = None
        self._started: tuple[Any, dict[str, Tensor]] | None = None

    @property
    def own(self) -> Recipe:
        """The training that the params' `switchable` describes."""
        return Recipe("switchable", self.params.precisions, self.params.switchable, self.params.seed)

    def variations(self, methods: Sequence[Method]) -> list[Recipe]:
        """One training per method and seed, with the number of passes in `comparisons`."""
        precisions = self.params.precisions
        return [
            Recipe(m.name, precisions, at_budget(settings, len(precisions), self.params.comparisons.passes), seed, start=m.start)
            for m, settings in [(m, m.applied(self.params.switchable)) for m in methods]
            for seed in self.params.comparisons.seeds
        ]

    def specialists(self) -> list[Recipe]:
        """Trainings of the first method at one precision only: for some precisions and each seed, with the whole budget."""
        comparisons = self.params.comparisons
        first = comparisons.methods[0].applied(self.params.switchable)
        alone = first.model_copy(update={"schedule": ScheduleArguments("all"), "learning_rate_factors": None})
        settings = at_budget(alone, 1, comparisons.passes)
        narrowest_first = widest_first(self.params.specialized)[::-1]
        chosen = widest_first(spread(narrowest_first, comparisons.specialists))
        return [Recipe("specialist", (p,), settings, seed) for p in chosen for seed in comparisons.seeds]

    def plain(self, schedule: ScheduleArguments, precisions: int, passes: int, **changes: Any) -> Switchable:
        """The settings of `switchable` with another schedule, the average loss and a single learning rate, at a budget."""
        update = {"schedule": schedule, "objective": ObjectiveArguments("average"), "learning_rate_factors": None} | changes
        return at_budget(self.params.switchable.model_copy(update=update), precisions, passes)

    def quantizer(self, settings: Switchable) -> QuantizerArguments:
        """The quantizer of `settings`, or the run's quantizer if there is none."""
        return settings.quantizer or self.params.quantizer

    def prepared(self, recipe: Recipe) -> SwitchableModel:
        """The untrained model of a recipe: the teacher with its quantizer and fresh adapters, or with all weights trainable.

        An adapter has the rank, alpha and dropout of its precision in the params. Other precisions use those of the first.
        """
        lora, quantizer = self.params.lora, self.quantizer(recipe.settings)
        if recipe.settings.adapters == "none":  # codes that compensate are those of a frozen weight
            quantizer = replace(quantizer, rounding="nearest")
        model = self._quantized(quantizer, tuple(dict.fromkeys((*recipe.precisions, *recipe.judged))))
        columns = zip(self.params.precisions, lora.ranks, lora.alphas, lora.dropouts, strict=True)
        specs = {p: LoraSpec(rank, alpha, dropout) for p, rank, alpha, dropout in columns}
        first = next(iter(specs.values()))
        torch.manual_seed(stream(recipe.seed, "adapters"))
        match recipe.settings.adapters:
            case "none":
                model.unfreeze_base()
            case "shared":
                model.add_adapters({SHARED: first})
            case "separate":
                model.add_adapters({p.w_bits: specs.get(p, first) for p in recipe.precisions})
        if (recipe.start or lora.start) == "output_error":
            self._start(model)
        if quantizer.learned_steps:
            model.learn_steps(recipe.precisions)
        return model

    def _quantized(self, quantizer: QuantizerArguments, precisions: tuple[Precision, ...]) -> SwitchableModel:
        """The teacher with a quantizer, codes and clips. They take minutes for SmolLM2, so the last model is kept to copy."""
        if self._last is None or self._last[:2] != (quantizer, precisions):
            model = self.study.saved_model(self.base)
            self.study.quantize(model, quantizer, precisions)
            for layer in model.layers:
                for w_bits in {p.w_bits for p in precisions} - {FULL}:
                    layer.codes(w_bits)
            self._last = quantizer, precisions, model
        return copy.deepcopy(self._last[2])

    def _start(self, model: SwitchableModel) -> None:
        """Start adapters at the correction of their layer's error. It takes minutes too, so the last one is kept as well."""
        assert self._last is not None
        widths = tuple(f".adapters.{w_bits}." for w_bits in model.lora if w_bits not in (SHARED, FULL))
        key = (*self._last[:2], tuple(model.lora.items()))
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
            teacher=self.study.saved_model(self.base) if settings.objective.rule.needs_teacher else None,
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


def at_budget(settings: Switchable, precisions: int, passes: int) -> Switchable:
    """The same settings with as many steps as a budget of passes allows."""
    training = at_passes(settings.training, settings.schedule, precisions, passes)
    return settings.model_copy(update={"training": training})


def file_name(recipe: Recipe) -> str:
    """The name of a training's files."""
    if recipe.name == "switchable":
        return recipe.name
    alone = f"_{recipe.precisions[0].name}" if len(recipe.precisions) == 1 else ""
    return f"{recipe.name}{alone}_seed{recipe.seed}".replace(" ", "_")
