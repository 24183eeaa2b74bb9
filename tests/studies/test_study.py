"""From params to models, data and scores, without a notebook or a pipeline around it."""

from __future__ import annotations

import json

import pytest
import torch

from qatlib import arithmetic
from qatlib.judging.published import published
from qatlib.precision import Precision
from qatlib.pretrained import ModelError
from qatlib.qa.parts import spread
from qatlib.studies.study import Study


@pytest.fixture(scope="module")
def desk(make_desk, tmp_path_factory):
    return make_desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def study(desk):
    return Study(desk)


@pytest.fixture(scope="module")
def teacher(study):
    return study.teacher("full")[0]


def test_spread_takes_first_last_and_even_steps_between():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread("abc", None) == spread("abc", 5) == list("abc")


def test_a_window_longer_than_the_models_positions_is_refused_before_training(make_desk, tmp_path):
    with pytest.raises(ModelError, match=r"data.max_length is 200; this model has 128 positions"):
        Study(make_desk(tmp_path, "data.max_length=200")).pretrained_model()


def test_groups_that_fit_no_layer_are_refused_before_training(make_desk, tmp_path):
    odd = 'comparisons.quantizers=[{"name":"odd","quantizer":{"weights":"per_group","group_size":24}}]'
    with pytest.raises(ModelError, match=r"^comparisons.quantizers\[0\].quantizer.group_size is 24; it must divide the 32"):
        Study(make_desk(tmp_path, odd)).pretrained_model()


def test_the_parts_are_the_params_and_apart(study):
    assert study.sizes["questions"].tolist() == [200, 60]
    assert not {q.paragraph for q in study.train} & {q.paragraph for q in study.validation}


def test_unanswerable_questions_are_counted_where_they_are_skipped(make_desk, tmp_path, embedded):
    for name, some in (("train", embedded[:100]), ("dev", embedded[100:200])):
        rows = [
            {"id": q.id, "title": "t", "context": q.context, "question": q.question}
            | {"answers": {"text": [a.text for a in q.answers] * (i > 6), "answer_start": [a.start for a in q.answers] * (i > 6)}}
            for i, q in enumerate(some)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    desk = make_desk(tmp_path / "desk", "data.unanswerable=skip")
    sources = {"train": (str(tmp_path / "train.jsonl"),), "validation": (str(tmp_path / "dev.jsonl"),), "train_questions": None}
    desk.params = desk.params.model_copy(update={"data": desk.params.data.model_copy(update=sources)})
    sizes = Study(desk).sizes
    assert sizes["questions"].tolist() == [93, 60] and sizes["unanswerable"].tolist() == [7, 7]
    assert not published().find("01_build", "data").faults(sizes.columns)


def test_a_stage_keeps_the_arithmetic_that_it_began_in(make_desk, tmp_path, monkeypatch):
    for fast, kept in ((True, "bf16"), (False, "bf16")):  # the second time on a machine where bf16 is slow
        monkeypatch.setattr(arithmetic, "is_fast", lambda device_type, fast=fast: fast)
        study = Study(make_desk(tmp_path, "compute.mixed_precision=auto"))
        assert study.mixed_precision == study.origin["mixed_precision"] == kept


def test_threads_are_never_more_than_the_cores(make_desk, tmp_path, monkeypatch):
    before = torch.get_num_threads()
    try:
        for cores, threads, taken in ((3, 1000, 3), (3, 2, 2), (1, "null", 1)):
            monkeypatch.setattr("qatlib.studies.study.usable", lambda cores=cores: cores)
            Study(make_desk(tmp_path, f"compute.threads={threads}"))
            assert torch.get_num_threads() == taken
    finally:
        torch.set_num_threads(before)


def test_a_pretrained_model_is_the_same_every_time_and_its_own(study, desk):
    a, b = study.pretrained_model(), study.pretrained_model()
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    a.qa_outputs.weight.data.zero_()
    assert not torch.equal(a.qa_outputs.weight, b.qa_outputs.weight)
    assert desk.computed.count("training_pretraining") == 1


def test_teachers_move_what_their_name_says(study, teacher):
    fresh = study.pretrained_model()
    lora, curve = study.teacher("lora")
    assert len(curve) == study.params.teacher.lora.steps + 1
    for name, weight in fresh.lm.named_parameters():
        assert torch.equal(lora.lm.get_parameter(name), weight)
    assert not torch.equal(teacher.lm.get_parameter(name), weight)
    assert set(lora.lora) == {32} and not teacher.lora


def test_scores_are_measured_once_and_leave_the_configuration(study, desk, teacher):
    precisions = [Precision(8, 8), Precision(2, 8)]
    first = study.scores(teacher, "again", precisions, questions=10)
    measured = list(desk.computed)
    second = study.scores(teacher, "again", precisions, questions=10)
    assert desk.computed == measured and first.equals(second)
    assert list(first)[:6] == ["model", "precision", "w_bits", "a_bits", "seed", "id"] and len(first) == 20
    assert first[["precision", "w_bits", "a_bits"]].drop_duplicates().to_numpy().tolist() == [["8", 8, 8], ["w2a8", 2, 8]]
    assert "w_bits" not in study.scores(teacher, "named", {"uniform8": "uniform8"}, questions=10)
    assert {p.name for p in teacher.configuration.values()} == {"32"}
    assert study.perplexities(teacher, "again", precisions, 3)["tokens"].min() > 0
