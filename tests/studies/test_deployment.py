"""The tables of the deployed model: bytes that are there, answers that agree, seconds for every size."""

from __future__ import annotations

import pytest

from qatlib.studies import deployment
from qatlib.studies.study import Study
from qatlib.studies.trainings import Trainings


@pytest.fixture(scope="module")
def study(make_desk, tmp_path_factory):
    return Study(make_desk(tmp_path_factory.mktemp("desk")))


@pytest.fixture(scope="module")
def base(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    study.teacher("full")[0].save(path, study.tokenizer)
    return path


@pytest.fixture(scope="module")
def model(study, base):
    trainings = Trainings(study, base)
    return trainings.prepared(trainings.own)


def test_bytes_on_disk_are_those_of_the_formula_and_a_header(study, model):
    stored = deployment.stored_sizes(study, model).set_index("precision")
    assert stored.loc["2", ["w_bits", "a_bits"]].tolist() == [2, 2]
    header = stored["disk_bytes"] - stored["formula_bytes"]
    assert (0 < header).all() and header.max() < 200 * len(model.infos)  # 189 a tensor
    assert (stored["directory_bytes"] > stored["disk_bytes"]).all() and stored["disk_bytes"]["2"] < stored["disk_bytes"]["8"]


def test_the_deployed_model_gives_the_same_answers(study, model):
    assert study.params.switchable.base_training  # so its base is no longer the teacher
    found = deployment.agreement(study, model)
    assert found["precision"].tolist() == ["8", "2"] and found["same_answers"].tolist() == [100, 100]
    assert found["n"].tolist() == [10, 10]
    assert found["loss_difference"].max() < 1e-3  # 0 here: both sum the same integers


def test_every_size_is_timed_for_every_model(study, model, base, monkeypatch):
    monkeypatch.setattr(deployment, "SECONDS", 0.01)
    table = deployment.latencies(study, model, base)
    assert table["model"].tolist() == ["fp32", "bf16", "deployed 8", "deployed 2"]
    assert (table["milliseconds"] > 0).all() and table["speedup"][0] == 1
