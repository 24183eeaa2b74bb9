"""Attacks of one run on a model of the smoke profile: what they see, and that draws are those they are said to be."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from qatlib.attacks import scores
from qatlib.attacks.defence import one_of, per_layer
from qatlib.objectives import collate
from qatlib.precision import FULL_PRECISION
from qatlib.report import attack_checks, robustness
from qatlib.report.robustness import Robustness
from qatlib.report.study import Study
from qatlib.report.textual import Textual
from qatlib.report.trainings import Trainings
from qatlib.squad import load_questions

SETS = ["adversarial.sets=[[8, 4]]", "adversarial.control=[16, 32]", "adversarial.words.most=2"]


@pytest.fixture(scope="module")
def work(make_desk, tmp_path_factory):
    study = Study(make_desk(tmp_path_factory.mktemp("robust"), *SETS))
    path = tmp_path_factory.mktemp("teacher") / "t"
    study.teacher("full")[0].save(path, study.tokenizer)
    return Robustness(study, Trainings(study, path))


@pytest.fixture(scope="module")
def model(work):
    return work.trained("random", 0)


@pytest.fixture(scope="module")
def frame(work, model):
    return work.matrix(model, "main", work.questions)


def test_trainings_differ_in_what_their_names_say(work):
    recipes = {method: work.recipe(method, 0) for method in ("random", "plain", "cpt", "consistency", "adversarial")}
    assert {r.settings.adapters for r in recipes.values()} == {"shared"}
    passes = {m: r.settings.training.steps * r.settings.schedule.passes_a_step(len(r.precisions)) for m, r in recipes.items()}
    assert set(passes.values()) == {work.section.passes}
    assert recipes["plain"].precisions == (FULL_PRECISION,) and recipes["cpt"].settings.schedule.name == "cpt"
    assert recipes["consistency"].settings.objective.name == "consistency"
    assert [m for m, r in recipes.items() if r.settings.adversary] == ["adversarial"]


def test_every_attack_is_answered_at_every_precision(work, frame):
    attacks = ["none", "noise", *(f"PGD at {b}" for b in (32, 16, 8, 4)), "EOT {8, 4}", "EOT {16, 32}"]
    assert frame.groupby(["attack", "answered"], sort=False).size().to_dict() == {
        (a, str(b)): len(work.questions) for a in attacks for b in (32, 16, 8, 4)
    }
    clean = work.study.scores(work.trained("random", 0), "clean", [work.fixed], work.questions)
    assert scores.select(frame, work.fixed.name, "none")["f1"].tolist() == clean["f1"].tolist()


def test_the_attacker_raises_the_loss_it_aims_at(work, frame):
    for p in ("32", "8", "4"):
        clean, own = (scores.select(frame, p, attack)["loss"] for attack in ("none", f"PGD at {p}"))
        assert (own.to_numpy() >= clean.to_numpy() - 1e-5).all() and own.mean() > clean.mean()


@pytest.mark.parametrize("drawn", [one_of, partial(per_layer, draws=2)], ids=["one", "mixed"])
def test_attackers_draws_are_new_for_every_batch_and_step_and_the_same_again(work, model, drawn, monkeypatch):
    seen = []
    monkeypatch.setattr(robustness, "attack_embeddings", lambda m, b, a, draws, s: [seen.append([draws(q) for q in range(8)])])
    craft = work.pgd_drawn(model, partial(drawn, work.sets[0], model))
    batches = [collate([window], 1) for window in work.study.featurize(work.fewer)[:4]]
    for batch in (*batches, *batches):
        craft(batch)
    assert seen[:4] == seen[4:] and all(a != b for i, a in enumerate(seen[:4]) for b in seen[:i])
    assert all(any(step != steps[0] for step in steps) for steps in seen)


def test_defenders_draws_are_new_for_every_batch(work, model, monkeypatch):
    seen = []
    monkeypatch.setattr(robustness, "span_figures", lambda m, *_: seen.append(dict(m.configuration)))
    ways = work.finer(model, work.sets[0])
    for window in work.study.featurize(work.fewer)[:4]:
        ways["layer 0"](collate([window], 1), torch.empty(0))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_finer_draws_average_so_many_answers(work, model):
    finer = work.drawn_finer(model)
    assert set(finer["answered"]) == {"per batch", "per layer", "per token"}
    assert set(finer.groupby(["answered", "attack"]).size()) == {len(work.fewer)}


def test_radii_have_every_attack_and_grow(work, model):
    found = work.radii(model)
    sizes = found.groupby(["epsilon", "attack", "answered"]).size()
    assert len(sizes) == 2 * 4 * 2 and set(sizes) == {len(work.fewer)}
    own = found[(found["attack"] == "PGD at 8") & (found["answered"] == "8")].groupby("epsilon")["loss"].mean()
    assert own.index.tolist() == [0.5, 4] and own.is_monotonic_increasing
    gains = scores.gain_table(scores.gains(found, ["epsilon"], work.sets[0], ["4", "8"]), ["epsilon"], resamples=100)
    assert gains["epsilon"].tolist() == [0.5, 4] and set(gains["n"]) == {len(work.fewer)}


def test_all_checks_are_made(work, model, frame):
    complete = scores.attacked(frame, *work.sets)
    found = attack_checks.main_checks(complete, work.sets, work.section.control, resamples=100)
    outside = work.from_outside(model, work.trained("random", 1000))
    more = (work.variations(model), work.gradients(model), complete, outside, work.fixed.name)
    found += attack_checks.variation_checks(*more, resamples=100)
    margin, rounding = work.by_margin(model), work.rounded_noisily(model)
    margin = scores.with_rpi(margin, work.sets[0])
    of = (complete, margin, work.drawn_finer(model), rounding, work.sets[0])
    found += attack_checks.adaptive_checks(*of, work.section.draws, resamples=100)
    found += attack_checks.cost_checks(work.section, {"words at 8": 12.5})
    assert {check.number for check in found} == set(range(13))
    assert any("2 mixed draws a step (a believable evaluation takes 20)" in check.what for check in found)
    table = attack_checks.noise_table(complete, rounding, work.sets[0], resamples=100)
    assert table["defence"].tolist() == ["RPI {8, 4}", *(d for d in ("8", "4", "noise at 8", "noise at 4") for _ in range(2))]
    assert set(table["n"]) == {len(work.fewer)} and table["rpi_gain"][0] == 0


def test_attacked_text_keeps_its_paragraph_and_its_answers(work, model):
    text = Textual(work, model)
    originals = {q.id: q for q in work.study.validation}
    for found in (text.noisy(), text.worded()):
        assert all(originals[row.id].paragraph == row.paragraph for row in found.itertuples())
    assert list(text.passes) == ["words at 32", "words at 8", "words at 4", "words EOT {8, 4}"]
    assert text.passes["words EOT {8, 4}"] > text.passes["words at 8"] > 1
    path = work.study.stage.checkpoints("words_0") / "attacked.json"
    for q in load_questions([path], "validation"):
        original = originals[q.id]
        assert q.question == original.question and [a.text for a in q.answers] == [a.text for a in original.answers]
        changed = [a != b for a, b in zip(q.context.split(), original.context.split(), strict=True)]
        assert sum(changed) <= 2


def test_noise_changes_perplexity_and_a_draw_is_the_mean(work, model):
    found = Textual(work, model).perplexities().set_index(["precision", "paragraph"])
    assert (found["noisy_nll"] != found["nll"]).all()
    mean = (found.loc["8", "nll"] + found.loc["4", "nll"]) / 2
    assert found.loc["RPI {8, 4}", "nll"].to_dict() == pytest.approx(mean.to_dict())


def test_shifted_questions_are_as_many_as_those_judged_in_full(work, model):
    found = Textual(work, model).shifted()
    assert set(found.groupby("answered").size()) == {len(work.questions)}
    assert not set(found["id"]) & {q.id for q in work.study.validation}
