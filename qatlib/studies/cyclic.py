"""Notebook 4: the range test, trainings compared at equal cost, and possible explanations of the differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import pandas as pd

from qatlib import cost
from qatlib.landscape import sharpness
from qatlib.model import SwitchableModel
from qatlib.precision import Configuration, LayerInfo, Precision
from qatlib.qa.parts import spread
from qatlib.schedule import Schedule
from qatlib.scheduling import CosineArguments, PhaseArguments, ScheduleArguments
from qatlib.seeds import stream
from qatlib.studies.pieces import Piece, run
from qatlib.studies.study import Study
from qatlib.studies.trainings import Recipe, Trainings, at_budget, file_name

STATIC = ScheduleArguments("all")
RANDOM = ScheduleArguments("random_uniform")


class Cyclic:
    """Cyclic precision training of one run, and the trainings it is compared with.

    All trainings are the params' `switchable`, except for schedule and adapters. They have the same data in the same order,
    no distillation and the same learning rate (training of all weights uses the teacher's rate).
    """

    def __init__(self, study: Study, trainings: Trainings) -> None:
        self.study, self.trainings, self.params, self.section = study, trainings, study.params, study.params.cpt
        self.precisions = self.params.cycled

    @cached_property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The switchable layers. Costs are counted over these."""
        return self.study.saved_model(self.trainings.base).infos

    # -- the range test -------------------------------------------------------------------------------------------

    def range_test(self) -> pd.DataFrame:
        """Training loss by step of a short training at each precision. Each starts with a fresh span head and fresh adapters.

        Progress is what a new head learns on the quantized model. CPT's range test trains one network from precision to
        precision. Here every precision has the same start, so the progress at one does not help the next. The loss replaces
        CPT's accuracy, which is too coarse on batches this small.

        Returns:
            `precision`, `step`, `span_loss` (nats).
        """
        parts = []
        for p in reversed(self.precisions):
            recipe = self._recipe("range test", (p,), STATIC, "shared", self.params.seed, self.section.range_test.steps)
            model = self.trainings.prepared(recipe)
            model.reset_head()  # after the adapters, from the recipe's seed
            metrics = self.trainings.fit(model, recipe, probed=False).dropna(subset="span_loss")
            parts.append(metrics[["step", "span_loss"]].assign(precision=p.name))
        return pd.concat(parts, ignore_index=True)

    def progress(self, losses: pd.DataFrame) -> pd.DataFrame:
        """Result of `range_test` for each precision, narrowest first.

        Returns:
            `precision`, `first` and `last` (mean loss of the first and last window, nats), `progress` (their difference),
            `trains` (whether the progress reaches the threshold).
        """
        window, rows = self.section.range_test.window, []
        for name, part in losses.groupby("precision", sort=False):
            first, last = part["span_loss"].head(window).mean(), part["span_loss"].tail(window).mean()
            rows.append({"precision": str(name), "first": first, "last": last, "progress": first - last})
        table = pd.DataFrame(rows)
        return table.assign(trains=table["progress"] >= self.section.range_test.threshold)

    def lowest(self, progress: pd.DataFrame) -> Precision:
        """The lowest precision of the cycles: the params' choice, or the narrowest precision at which training makes progress.

        Raises:
            ValueError: only the widest precision makes progress, so there is nothing to cycle through.
        """
        if self.section.lowest:
            return self.section.lowest
        training = {*progress.loc[progress["trains"], "precision"]}
        found = [p for p in reversed(self.precisions) if p.name in training]
        if not found or found[0] == self.precisions[0]:
            least = self.section.range_test.threshold
            raise ValueError(
                f"range test: no precision below {self.precisions[0].name} made progress of {least} nats; name cpt.lowest"
            )
        return found[0]

    # -- the comparison -------------------------------------------------------------------------------------------

    def recipes(self, lowest: Precision) -> list[Recipe]:
        """Every training of the comparison: first those at equal passes, then those at equal bit operations."""
        at_passes = [
            self._recipe(method, *variant, seed)
            for method in self.section.methods
            for variant in self._variants(method, lowest)
            for seed in self.section.seeds
        ]
        again = [self._as_dear(recipe) for recipe in at_passes if recipe.name in self.section.equal_bitops]
        return [*at_passes, *again]

    def _variants(self, method: str, lowest: Precision) -> Iterator[tuple[tuple[Precision, ...], ScheduleArguments, str]]:
        """Precisions, schedule and adapters of a method's trainings.

        `static` has one training for each of some precisions. The precision where `two-phase` ends is among them.
        `pattern shared` goes from the widest precision to the narrowest and back, one precision per step, as S2's
        [8, 4, 2, 4, 8] does.
        """
        between, ending = (lowest, self.precisions[0]), self.section.second_phase or lowest
        within = tuple(p for p in self.precisions if p.w_bits >= lowest.w_bits)

        def cycles(**changes: Any) -> ScheduleArguments:
            order, then = changes.get("order", "forward"), changes.get("then")
            cosine = CosineArguments(cycles=self.section.cycles, between=between, form=self.section.form, order=order)
            return ScheduleArguments("cpt", cosine=cosine, then=then)

        known: Mapping[str, tuple[ScheduleArguments, str]] = {
            "random separate": (RANDOM, "separate"),
            "random shared": (RANDOM, "shared"),
            "cpt separate": (cycles(), "separate"),
            "cpt shared": (cycles(), "shared"),
            "pattern shared": (ScheduleArguments("scheduled", pattern=(*within, *within[-2::-1])), "shared"),
            "two-phase": (cycles(then=PhaseArguments(ending, self.section.second_phase_share)), "shared"),
            "cpt reversed": (cycles(order="reversed"), "shared"),
            "cpt shuffled": (cycles(order="shuffled"), "shared"),
            "random all weights": (RANDOM, "none"),
            "cpt all weights": (cycles(), "none"),
        }
        if method == "static":
            chosen = {*spread(self.precisions, self.section.static), *([ending] if "two-phase" in self.section.methods else [])}
            for p in self.precisions:
                if p in chosen:
                    yield (p,), STATIC, "shared"
        else:
            yield within, *known[method]

    def _recipe(
        self,
        name: str,
        precisions: Sequence[Precision],
        schedule: ScheduleArguments,
        adapters: str,
        seed: int,
        passes: int | None = None,
    ) -> Recipe:
        settings = self.trainings.plain(schedule, len(precisions), passes or self.section.passes, adapters=adapters)
        changes: dict[str, Any] = {"gradient_bits": self.section.gradient_bits}
        if adapters == "none":
            changes["learning_rate"] = self.params.teacher.full.learning_rate
        settings = settings.model_copy(update={"training": replace(settings.training, **changes)})
        return Recipe(name, tuple(precisions), settings, seed, judged=self.section.untrained)

    def _as_dear(self, recipe: Recipe) -> Recipe:
        """The same training, lengthened to about the bit operations of `cpt`'s passes at the widest precision.

        Cycles keep their length, so there are more of them. Longer cycles would mix the precisions differently.
        """
        widest = Configuration.uniform(self.precisions[0], self.layers)
        budget = self.section.passes * cost.training_bitops(widest, self.layers, self.section.gradient_bits)

        def lasting(passes: int) -> Recipe:
            settings = at_budget(recipe.settings, len(recipe.precisions), passes)
            if cosine := settings.schedule.cosine:
                more = replace(cosine, cycles=max(1, round(self.section.cycles * passes / self.section.passes)))
                settings = settings.model_copy(update={"schedule": replace(settings.schedule, cosine=more)})
            return replace(recipe, name=f"{recipe.name} at equal bitops", settings=settings)

        passes = recipe.settings.training.steps
        for _ in range(3):  # the number of steps changes the rounding of the cosine, and so its mean
            passes = round(budget * passes / self.bitops(lasting(passes)))
        near = {max(1, passes + k * max(1, passes // 100)) for k in range(-10, 11)}  # a tenth to either side, or ten passes
        return min(map(lasting, sorted(near)), key=lambda found: abs(self.bitops(found) - budget))

    def schedule(self, recipe: Recipe) -> Schedule:
        """The schedule of a recipe."""
        return self.trainings.schedule(recipe, self.layers)

    def bitops(self, recipe: Recipe) -> float:
        """Bit operations of a whole training by formula. The unit is a pass at 32 bits."""
        schedule, bits = self.schedule(recipe), self.section.gradient_bits
        steps = range(recipe.settings.training.steps)
        return sum(cost.training_bitops(c, self.layers, bits) for step in steps for c in schedule(step))

    def costs(self, recipes: Sequence[Recipe]) -> pd.DataFrame:
        """The cost of each method: `model`, `trained at`, `passes`, `bitops` (mean over seeds, in passes at 32 bits)."""
        rows = [
            {
                "model": recipe.name,
                "trained_at": ", ".join(p.name for p in recipe.precisions),
                "passes": recipe.settings.training.steps,
                "bitops": self.bitops(recipe),
            }
            for recipe in recipes
        ]
        return pd.DataFrame(rows).groupby(["model", "trained_at", "passes"], sort=False)[["bitops"]].mean().reset_index()

    def trained(self, recipes: Sequence[Recipe]) -> dict[str, pd.DataFrame]:
        """Train every recipe and measure each trained model at the precisions it can run at.

        Returns:
            `scores` and `perplexities` in the schemas of `qatlib.judging.results`, the former with `prediction`; `curves`, the
            training metrics with `model` and `seed`; `sharpness` as `qatlib.landscape.sharpness`, with `model`,
            `precision` and `seed`. Each seed has its own directions, the same for every method.
        """
        found: dict[str, list[pd.DataFrame]] = {"scores": [], "perplexities": [], "curves": [], "sharpness": []}
        for recipe, model, metrics in self.trainings.each(recipes):
            found["curves"].append(metrics.assign(model=recipe.name, seed=recipe.seed))
            label, at = file_name(recipe), self.judged_at(recipe)
            scores = self.study.scores(model, label, at, self.section.questions, predictions=True)
            found["scores"].append(scores.assign(model=recipe.name, seed=recipe.seed))
            found["perplexities"].append(self.study.perplexities(model, label, at).assign(model=recipe.name, seed=recipe.seed))
            if self.section.sharpness:
                found["sharpness"].append(self._sharpness(model, recipe))
        return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items() if parts}

    def judged_at(self, recipe: Recipe) -> list[Precision]:
        """The precisions a model was trained at. `untrained` is added unless it has separate adapters or only one precision."""
        alone = len(recipe.precisions) == 1
        more = () if alone or recipe.settings.adapters == "separate" else self.section.untrained
        return sorted({*recipe.precisions, *more}, reverse=True)

    def _sharpness(self, model: SwitchableModel, recipe: Recipe) -> pd.DataFrame:
        settings = self.section.sharpness
        assert settings
        questions = spread(self.study.validation, settings.questions)
        features = self.study.featurize(questions)
        around = (settings.radii, settings.draws, stream(self.params.seed, "sharpness", recipe.seed))

        def measure(p: Precision) -> pd.DataFrame:
            with model.at(p):
                return sharpness(model, questions, features, *around, **self.study.answering)

        at, name = dict.fromkeys((recipe.precisions[0], recipe.precisions[-1])), f"sharpness_{file_name(recipe)}_at"
        pieces = [Piece(f"{name}_{p.name.lower()}", partial(measure, p), published=False) for p in at]
        parts = zip(at, run(pieces, self.study.stage), strict=True)
        labelled = [part.assign(model=recipe.name, precision=p.name, seed=recipe.seed) for p, part in parts]
        return pd.concat(labelled, ignore_index=True)
