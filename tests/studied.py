"""Fixtures of several folders: what studies make of the smoke profile."""

import pytest

from qatlib.studies.layerwise import Layerwise
from qatlib.studies.robustness import Robustness
from qatlib.studies.study import Study
from qatlib.studies.trainings import Trainings

SETS = ["adversarial.sets=[[8, 4]]", "adversarial.control=[16, 32]", "adversarial.words.most=2"]


@pytest.fixture(scope="session")
def robustness(make_desk, tmp_path_factory) -> Robustness:
    """Attacks of one run."""
    study = Study(make_desk(tmp_path_factory.mktemp("robust"), *SETS))
    path = tmp_path_factory.mktemp("teacher") / "t"
    study.teacher("full")[0].save(path, study.tokenizer)
    return Robustness(study, Trainings(study, path))


@pytest.fixture(scope="session")
def model(robustness):
    """Its model."""
    return robustness.trained("random", 0)


@pytest.fixture(scope="session")
def frame(robustness, model):
    """Every attack, answered at every precision."""
    return robustness.matrix(model, "main", robustness.questions)


@pytest.fixture(scope="session")
def layers(make_desk, tmp_path_factory) -> Layerwise:
    """The sweep of an untrained switchable model of the smoke profile."""
    study = Study(make_desk(tmp_path_factory.mktemp("layerwise"), "sensitivity.lowered=[both,weights,activations]"))
    path = tmp_path_factory.mktemp("teacher") / "t"
    study.teacher("full")[0].save(path, study.tokenizer)
    trainings = Trainings(study, path)
    return Layerwise(study, trainings.prepared(trainings.own))


@pytest.fixture(scope="session")
def sweep(layers):
    """Of its base."""
    return layers.sweep(layers.base)
