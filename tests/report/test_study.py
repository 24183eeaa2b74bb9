"""From params to models, data and scores, without a notebook or a pipeline around it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch

from qatlib.model import ModelError
from qatlib.precision import Precision
from qatlib.report.params import load_params
from qatlib.report.study import Study, spread


class Desk:
    """As much of a stage as a study needs: params, and a folder that remembers tables."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.params, self.folder, self.computed = load_params("smoke", overrides), folder, []

    def table(self, name, compute):
        path = self.folder / f"{name}.csv"
        if not path.is_file():
            self.computed.append(name)
            compute().to_csv(path, index=False)
        return pd.read_csv(path)

    def timed(self, name):
        return nullcontext()

    def checkpoints(self, name):
        return self.folder / name


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def study(desk):
    return Study(desk)


@pytest.fixture(scope="module")
def teacher(study):
    return study.teacher("full")[0]


def test_spread_takes_first_last_and_even_steps_between():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread("abc", None) == spread("abc", 5) == list("abc")


def test_a_window_longer_than_the_models_positions_is_refused_before_training(tmp_path):
    with pytest.raises(ModelError, match=r"data.max_length is 200; this model has 128 positions"):
        Study(Desk(tmp_path, "data.max_length=200")).pretrained_model()


def test_the_parts_are_the_params_and_apart(study):
    assert study.sizes["questions"].tolist() == [200, 60]
    assert not {q.paragraph for q in study.train} & {q.paragraph for q in study.validation}


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
    assert list(first)[:4] == ["model", "precision", "seed", "id"] and len(first) == 20
    assert {p.name for p in teacher.configuration.values()} == {"32"}
    assert study.perplexities(teacher, "again", precisions, 3)["tokens"].min() > 0


def test_a_switchable_model_has_an_adapter_a_width_on_the_saved_teacher(study, teacher, tmp_path):
    teacher.save(tmp_path / "t", study.tokenizer)
    model = study.switchable_model(tmp_path / "t")
    assert set(model.lora) == {p.w_bits for p in study.params.precisions}
    x = torch.randint(1, 300, (2, 9))
    assert torch.equal(model(x).start, teacher(x).start)


@pytest.mark.parametrize("objective", ["joint", "distillation"])
def test_a_switchable_model_is_trained_as_the_settings_say(teacher, tmp_path, objective):
    chosen = ["switchable.schedule={name: sandwich, passes: 3}", f"switchable.objective.name={objective}"]
    chosen += ["switchable.learning_rate_factors=[1, 0.5, 0.5, 0.5]", "compute.trackers=[tensorboard]"]
    study = Study(Desk(tmp_path, *chosen))
    teacher.save(tmp_path / "t", study.tokenizer)
    model = study.switchable_model(tmp_path / "t")
    rows = study.fit_switchable(model, study.params.switchable, "mine", tmp_path / "t")[1:]
    assert set(rows["passes"]) == {3} and ("divergence" in rows) == ("teacher_passes" in rows) == (objective == "distillation")
    assert rows[["span_loss@32", "span_loss@2"]].notna().all(axis=None)
    assert rows["learning_rate"].max() == pytest.approx(study.params.switchable.training.learning_rate * (1 + 0.5 + 0.5) / 3)
    assert {"loss@32", "loss@8", "loss@4", "loss@2"} < set(rows) and any((tmp_path / "logs/mine").iterdir())


def test_bf16_on_a_cpu_trains_with_eager_attention(tmp_path):
    study = Study(Desk(tmp_path, "compute.mixed_precision=bf16"))
    assert study._placed(study._switchable(_lm(study))).lm.config._attn_implementation == "eager"


def _lm(study):
    from qatlib.toyqa import build_model

    return build_model(1, 2, 16, study.params.seed)
