"""Trainings on one base: what the settings say is what is trained, at equal passes, told apart by name and seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qatlib import training as training_module
from qatlib.lora import SHARED
from qatlib.precision import Precision
from qatlib.scheduling import ScheduleArguments
from qatlib.studies import study as study_module
from qatlib.studies import trainings as trainings_module
from qatlib.studies.study import Study
from qatlib.studies.trainings import Recipe, Trainings, base_name


@pytest.fixture(scope="module")
def base(make_desk, tmp_path_factory):
    """A saved teacher."""
    study = Study(make_desk(tmp_path_factory.mktemp("base")))
    path = tmp_path_factory.mktemp("teacher") / "t"
    teacher = study.teacher("full")[0]
    teacher.save(path, study.tokenizer)
    return path


@pytest.fixture
def trainings(base, make_desk, tmp_path):
    def make(*overrides: str) -> Trainings:
        return Trainings(Study(make_desk(tmp_path, "switchable.base_training=null", *overrides)), base)

    return make


BASE = (
    "switchable.base_training={precisions: [4, 2], schedule: {name: cyclic}, objective: {name: distillation}, "
    "training: {steps: 4, batch_size: 8, learning_rate: 1e-3, checkpoint_every: 2}}"
)
"""Four steps."""


def weights(model) -> dict[str, torch.Tensor]:
    """The base's own."""
    own = (".adapters.", ".clips.", ".compensated.")
    return {name: p for name, p in model.lm.named_parameters() if not any(part in name for part in own)}


def test_a_switchable_model_has_an_adapter_a_width_on_the_saved_teacher(trainings):
    mine = trainings()
    model = mine.prepared(mine.own)
    assert set(model.lora) == {p.w_bits for p in mine.params.precisions}
    x = torch.randint(1, 300, (2, 9))
    assert torch.equal(model(x).start, mine.study.saved_model(mine.base)(x).start)


def test_shared_adapters_and_a_quantizer_of_its_own(trainings):
    mine = trainings("switchable.adapters=shared", "switchable.quantizer={clipping: mse, learned_steps: true}")
    model = mine.prepared(mine.own)
    assert set(model.lora) == {SHARED} and model.quantizer.clipping == "mse" != mine.params.quantizer.clipping
    layer = model.layers[0]
    assert set(layer.clips) == set(layer.steps) == {"2", "4", "8"}
    assert layer.clips["2"] < layer.clips["8"] <= 0 and layer.steps["2"].requires_grad


def test_a_model_that_was_prepared_and_trained_leaves_no_trace_in_the_next(trainings):
    """Codes and clips of the teacher are found once and copied: the copy is what a fresh start would be."""
    chosen = ["switchable.quantizer={clipping: mse, learned_steps: true}", "switchable.training.steps=3"]
    mine, fresh = trainings(*chosen), trainings(*chosen)
    first = mine.prepared(mine.own)
    mine.fit(first, mine.own)
    again, expected = mine.prepared(mine.own), fresh.prepared(fresh.own)
    assert not all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    found = again.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
    for layer, other in zip(again.layers, expected.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer.codes(2), other.codes(2), strict=True))


@pytest.mark.parametrize("objective", ["joint", "distillation"])
def test_a_switchable_model_is_trained_as_the_settings_say(trainings, objective):
    chosen = ["switchable.schedule={name: sandwich, passes: 3}", f"switchable.objective.name={objective}"]
    chosen += ["switchable.learning_rate_factors=[1, 0.5, 0.5, 0.5]", "compute.trackers=[tensorboard]"]
    mine = trainings(*chosen)
    rows = mine.fit(mine.prepared(mine.own), mine.own)[1:]
    assert set(rows["passes"]) == {3} and ("divergence" in rows) == ("teacher_passes" in rows) == (objective == "distillation")
    assert rows[["span_loss@32", "span_loss@2"]].notna().all(axis=None)
    assert rows["learning_rate"].max() == pytest.approx(mine.params.switchable.training.learning_rate * (1 + 0.5 + 0.5) / 3)


def test_adversarial_training_sees_perturbed_input(trainings):
    rows = {}
    for name, adversary in {"a": "null", "b": "{epsilon: 1, steps: 1}"}.items():
        mine = trainings(f"switchable.adversary={adversary}", "switchable.training.steps=2")
        rows[name] = mine.fit(mine.prepared(mine.own), Recipe(name, mine.own.precisions, mine.own.settings, 0))
    assert rows["b"]["span_loss"][1] > rows["a"]["span_loss"][1]


def test_every_variation_and_specialist_has_the_same_passes(trainings):
    mine = trainings("comparisons.passes=12", "comparisons.seeds=[0, 1]")
    recipes = [*mine.variations(mine.params.comparisons.methods), *mine.specialists()]
    names = [(r.name, r.seed, len(r.precisions)) for r in recipes]
    assert names == [(n, s, k) for n, k in (("first", 4), ("cascaded", 4), ("specialist", 1)) for s in (0, 1)]
    for recipe in recipes:
        schedule, steps = recipe.settings.schedule, recipe.settings.training.steps
        assert steps * schedule.passes_a_step(len(recipe.precisions)) == 12
    assert [r.settings.training.steps for r in recipes] == [12, 12, 3, 3, 12, 12]
    both = trainings("comparisons.specialists=2").specialists()
    assert [r.precisions[0].name for r in both] == ["32", "2"]  # plain LoRA among them


def test_compared_models_answer_the_same_questions_at_their_precisions(trainings):
    mine = trainings("comparisons.seeds=[0, 1]")
    recipes = [*mine.variations(mine.params.comparisons.methods[:1]), *mine.specialists()]
    scores = mine.compared(recipes)
    assert scores.groupby(["model", "precision", "seed"]).size().to_dict() == {
        **{("first", p.name, seed): 10 for p in mine.params.precisions for seed in (0, 1)},
        **{("specialist", "2", seed): 10 for seed in (0, 1)},
    }
    alone = mine.prepared(mine.specialists()[0])
    assert set(alone.lora) == {2} and mine.specialists()[0].precisions == (Precision(2, 2),)
    by_seed = [group["loss"].tolist() for _, group in scores[scores["precision"] == "2"].groupby(["model", "seed"])]
    assert len({tuple(losses) for losses in by_seed}) == 4


def test_a_compensating_quantizer_is_calibrated_once_and_adapters_start_from_its_error(trainings, monkeypatch):
    calls = []
    for name in ("compensate", "start_adapters"):
        owner = trainings_module if name == "start_adapters" else study_module
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, real=real, name=name: (calls.append(name), real(*a)))
    mine = trainings("switchable.quantizer={rounding: compensated, rotation: hadamard}", "lora.start=output_error")
    first = mine.prepared(mine.own)
    for recipe in (mine.own, replace(mine.own, seed=5)):
        again = mine.prepared(recipe)
        for layer, other in zip(first.layers, again.layers, strict=True):
            assert layer.compensated.keys() == {"8", "4", "2"}
            assert all(torch.equal(layer.codes(bits)[0], other.codes(bits)[0]) for bits in (8, 4, 2))
            assert torch.equal(layer.own_adapter(4).lora_B, other.own_adapter(4).lora_B) and layer.own_adapter(4).lora_B.any()
            assert not layer.own_adapter(32).lora_B.any()
    assert calls == ["compensate", "start_adapters"]
    assert not torch.equal(again.layers[0].own_adapter(32).lora_A, first.layers[0].own_adapter(32).lora_A)


def test_all_weights_are_trained_with_codes_rounded_to_nearest(trainings):
    mine = trainings("switchable.quantizer={rounding: compensated}", "switchable.adapters=none")
    model = mine.prepared(mine.own)
    assert model.quantizer.rounding == "nearest" and not model.layers[0].compensated


def test_adapters_are_trained_on_a_base_that_was_trained_once_and_is_frozen(trainings):
    quantizer = "switchable.quantizer={clipping: mse, rotation: hadamard, rounding: compensated}"
    mine = trainings(BASE, quantizer, "switchable.training.steps=2", "lora.start=output_error")
    teacher, model = mine.study.saved_model(mine.base), mine.prepared(mine.own)
    x = torch.randint(1, 300, (2, 9))
    with torch.no_grad(), model.at(32):
        assert not torch.equal(model(x).start, teacher(x).start)  # at every precision the base is another
    assert not any(torch.equal(p, weights(teacher)[name]) for name, p in weights(model).items() if p.dim() == 2)
    assert not any(p.requires_grad for p in weights(model).values())
    layer, other = model.layers[0], teacher.layers[0]
    assert layer.compensated.keys() == {"8", "4", "2"} and not torch.equal(layer.read_back(2), other.read_back(2))
    before = {name: p.clone() for name, p in weights(model).items()}
    mine.fit(model, mine.own)
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())
    trained = [name for name in mine.study.stage.computed if "base" in name]
    assert len(trained) == 1 and trained[0].startswith("training_base_4-2_seed0_")
    curve = mine.study.stage.table(trained[0], lambda: None)
    assert set(curve["w_bits"].dropna()) == {4, 2} and curve.filter(regex="^loss@").dropna().shape == (3, 4)


def test_a_killed_base_training_goes_on_to_the_same_weights(trainings, base, make_desk, tmp_path, monkeypatch):
    chosen = [BASE, "switchable.quantizer={clipping: mse}"]
    expected = Trainings(Study(make_desk(tmp_path / "whole", *chosen)), base)
    expected = weights(expected.frozen_base(expected.own))
    real, calls = training_module.task_loss, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) > 3:  # in step 4, after the checkpoint of step 2
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(training_module, "task_loss", killed)
    mine = trainings(*chosen)
    with pytest.raises(KeyboardInterrupt):
        mine.frozen_base(mine.own)
    monkeypatch.setattr(training_module, "task_loss", real)
    again = trainings(*chosen)
    assert all(torch.equal(p, expected[name]) for name, p in weights(again.frozen_base(again.own)).items())


def test_a_base_is_shared_by_what_trains_it_alike(trainings):
    methods = "comparisons.methods=[{name: a}, {name: b, adapters: shared}, {name: c, schedule: {name: all}}, "
    mine = trainings(BASE, f"{methods}{{name: d, base_training: false}}, {{name: e, adapters: none}}]", "comparisons.passes=14")
    quantized = "[{name: f, quantizer: {rounding: compensated}}, {name: g, quantizer: {clipping: mse}}]"
    recipes = mine.variations(mine.params.comparisons.methods)
    others = trainings(BASE, methods + "]", f"comparisons.quantizers={quantized}", "comparisons.passes=14")
    recipes += others.variations(others.params.comparisons.quantizers)
    names = {r.name: base_name(r, mine.quantizer(r.settings)) for r in (mine.own, *recipes)}
    assert names["switchable"] == names["a"] == names["b"] == names["c"] == names["f"] != names["g"]
    assert names["d"] == names["e"] == "" != names["g"]
    assert base_name(replace(mine.own, seed=1), mine.params.quantizer) != names["a"]


@pytest.mark.parametrize("passes", [5, 14, 31, 700])
def test_a_budget_is_of_base_training_and_adapters_together(trainings, passes):
    methods = "[{name: a}, {name: b, base_training: false}, {name: c, schedule: {name: all}}]"
    mine = trainings(BASE, f"comparisons.methods={methods}", "comparisons.specialists=4", f"comparisons.passes={passes}")
    first, alone, joint = (r.settings for r in mine.variations(mine.params.comparisons.methods))
    assert first.base_training.passes + first.training.steps == passes == alone.training.steps and alone.base_training is None
    assert first.base_training.passes == pytest.approx(passes * 4 / 14, abs=0.5)  # 4 of 14 passes in the params
    assert 0 <= passes - joint.base_training.passes - 4 * joint.training.steps < 4
    trained = {r.precisions[0].name: r.settings for r in mine.specialists()}
    assert [name for name, settings in trained.items() if settings.base_training] == ["4", "2"]
    assert all(s.training.steps + (s.base_training.passes if s.base_training else 0) == passes for s in trained.values())
    assert trained["2"].base_training.precisions == (Precision(2, 2),)
    assert mine.plain(ScheduleArguments("cyclic"), 4, 8).base_training is None


def test_the_base_before_and_after_its_training(trainings):
    mine = trainings(BASE)
    (before, teacher), (after, base) = mine.bases(mine.own)
    assert (before, after) == ("teacher_base", "trained_base") and not teacher.lora and not base.lora
    assert all(torch.equal(p, weights(mine.study.saved_model(mine.base))[name]) for name, p in weights(teacher).items())
    plain = trainings()
    assert [*plain.bases(plain.own)] == []
