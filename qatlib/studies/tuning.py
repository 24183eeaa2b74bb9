"""Settings of the switchable training, tried on training paragraphs that are held aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from qatlib.params.schema import Params
from qatlib.params.tuning import Tuning
from qatlib.studies.pieces import Piece, run
from qatlib.studies.trainings import Trainings, at_budget, file_name

OWN = "own"
"""The settings that the run itself uses. They are always tried, first."""


def tried(trainings: Trainings, tuning: Tuning) -> pd.DataFrame:
    """Train with every trial's settings on a part of the training paragraphs, and score on the others, at every precision.

    The teacher has seen these questions as well. So the scores are too high, and only their differences count.

    Returns:
        Scores in the schema of `qatlib.judging.results`, with the trial as `model`; with the `learning_rate` of the precision,
        the `rank` of its adapter, and the `passes` that a layer is trained at it.
    """
    keeper = trainings.study.stage
    pieces = [
        Piece(f"tried_{name}".replace(" ", "_"), partial(_scored, trainings, tuning.questions, name, params), published=False)
        for name, params in _settings(trainings.params, tuning)
    ]
    return keeper.table("tried_scores", lambda: pd.concat(run(pieces, keeper), ignore_index=True))


def _settings(params: Params, tuning: Tuning) -> Iterator[tuple[str, Params]]:
    """Every trial's name and params, at the same number of passes."""
    precisions = len(params.precisions)
    base_share = params.switchable.base_share(precisions)
    trials = [(t.name, t.settings(params.switchable), t.adapters(params.lora)) for t in tuning.trials]
    for name, switchable, lora in [(OWN, params.switchable, params.lora), *trials]:
        settings = at_budget(switchable, precisions, tuning.passes, base_share)
        yield name, params.model_copy(update={"switchable": settings, "lora": lora})


def _scored(trainings: Trainings, questions: int, name: str, params: Params) -> pd.DataFrame:
    mine = Trainings(trainings.study.aside(questions, params), trainings.base)
    ((recipe, model, _),) = mine.each([replace(mine.own, name=f"tried {name}")])
    scores = mine.study.scores(model, file_name(recipe), recipe.precisions, published=False)
    factors = recipe.settings.learning_rate_factors or [1.0] * len(recipe.precisions)
    rates = {p.name: recipe.settings.training.learning_rate * f for p, f in zip(recipe.precisions, factors, strict=True)}
    ranks = {p.name: rank for p, rank in zip(recipe.precisions, params.lora.ranks, strict=True)}
    passes = {p.name: count for p, count in mine.passes(recipe, model.infos).items()}
    columns: dict[str, dict[str, Any]] = {"learning_rate": rates, "rank": ranks, "passes": passes}
    return scores.assign(model=name, **{column: scores["precision"].map(by) for column, by in columns.items()})
