"""Trials: judged on questions that they are not trained on, at equal passes, with the settings that they name."""

from __future__ import annotations

import pytest

from qatlib.judging import results
from qatlib.studies.study import Study
from qatlib.studies.trainings import Trainings
from qatlib.studies.tuning import OWN, tried

TRIAL = "{name: wide and fast, learning_rate: 3e-3, learning_rate_factors: [1, 1, 1, 2], ranks: [4, 4, 8, 8]}"


@pytest.fixture(scope="module")
def trainings(make_desk, tmp_path_factory) -> Trainings:
    tuning = f"tuning={{questions: 40, passes: 4, trials: [{TRIAL}]}}"
    study = Study(make_desk(tmp_path_factory.mktemp("tuning"), tuning))
    path = tmp_path_factory.mktemp("teacher") / "t"
    study.teacher("full")[0].save(path, study.tokenizer)
    return Trainings(study, path)


def test_trials_are_judged_on_paragraphs_that_none_is_trained_on(trainings, monkeypatch):
    study, seen = trainings.study, set()
    fit = Study.fit

    def watched(self, *args, **kwargs):
        seen.update(q.paragraph for q in self.train)
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(Study, "fit", watched)
    scores = tried(trainings, trainings.params.tuning)
    held = set(scores["paragraph"])
    known = {q.paragraph for q in study.train}
    assert seen and not seen & held and seen | held == known
    assert {q.id for q in study.validation}.isdisjoint(scores["id"])
    names = [p.name for p in trainings.params.precisions]
    assert results.cells(scores) == [results.Cell(m, p) for m in (OWN, "wide and fast") for p in names]

    def settings(trial: str, column: str) -> list[float]:
        return scores[scores["model"] == trial].drop_duplicates("precision")[column].tolist()

    assert settings(OWN, "learning_rate") == [1e-3] * 4 and settings(OWN, "rank") == [4] * 4
    assert settings("wide and fast", "learning_rate") == [3e-3, 3e-3, 3e-3, 6e-3]
    assert settings("wide and fast", "rank") == [4, 4, 8, 8]
    base = trainings.params.switchable.base_training.passes_a_step  # it takes one step of the four passes
    assert sum(settings(OWN, "passes")) == sum(settings("wide and fast", "passes")) == pytest.approx(4 - base)


def test_the_study_itself_is_as_it_was(trainings):
    study = trainings.study
    aside = study.aside(40, study.params)
    assert len(aside.validation_features) < len(study.train_features)
    assert aside.validation[0] in study.train and study.validation[0] not in aside.validation
    assert len(study.train) == len(aside.train) + len(aside.validation)
