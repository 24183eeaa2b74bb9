"""Written answers: the questions that the params ask, at every precision."""

from __future__ import annotations

from qatlib.studies.study import Study
from qatlib.studies.trainings import Trainings
from qatlib.studies.written import written_answers


def test_answers_are_scored_at_every_precision(make_desk, tmp_path):
    study = Study(make_desk(tmp_path))
    study.teacher("full")[0].save(tmp_path / "t", study.tokenizer)
    mine = Trainings(study, tmp_path / "t")
    found = written_answers(study, mine.prepared(mine.own), "written", study.params.precisions[:2])
    assert list(found["precision"].unique()) == [p.name for p in study.params.precisions[:2]]
    assert found.groupby("precision")["id"].nunique().eq(study.params.generative.questions).all()
    assert found["f1"].between(0, 100).all() and set(found["model"]) == {"written"}
