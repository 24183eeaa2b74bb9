"""Attacks of one run on a model of the smoke profile: what they see, and that draws are those they are said to be."""

from __future__ import annotations

import torch

from qatlib.judging import attack_scores as scores
from qatlib.params.sections import Compute
from qatlib.precision import FULL_PRECISION
from qatlib.qa.evaluate import span_figures
from qatlib.qa.loss import collate
from qatlib.schedule import make_schedule
from qatlib.studies import robustness

METHODS = ("random", "random pair", "plain", "cpt", "consistency", "adversarial")


def test_trainings_differ_in_what_their_names_say(work):
    recipes = {method: work.recipe(method, 0) for method in METHODS}
    assert {r.settings.adapters for r in recipes.values()} == {"shared"}
    passes = {m: r.settings.training.steps * r.settings.schedule.passes_a_step(len(r.precisions)) for m, r in recipes.items()}
    assert set(passes.values()) == {work.section.passes}
    assert recipes["plain"].precisions == (FULL_PRECISION,) and recipes["cpt"].settings.schedule.name == "cpt"
    pair, taught = recipes["random pair"].settings, recipes["consistency"].settings
    assert taught.objective.name == "consistency" and pair == taught.model_copy(update={"objective": pair.objective})
    learning, infos = recipes["consistency"], work.trained("random", 0).infos
    schedule = make_schedule(learning.settings.schedule, learning.precisions, infos, seed=0, steps=60)
    drawn = {p for step in range(60) for c in schedule(step) for p in c.values()}
    assert drawn == set(work.widths)  # it learns at every precision, as the others do
    assert all(set(r.judged) == set(work.widths) for r in recipes.values())
    assert [m for m, r in recipes.items() if r.settings.adversary] == ["adversarial"]


def test_every_attack_is_answered_at_every_precision(work, frame):
    attacks = ["none", "noise", *(f"PGD at {b}" for b in (32, 16, 8, 4)), "EOT {8, 4}", "EOT {16, 32}"]
    assert frame.groupby(["attack", "answered"], sort=False).size().to_dict() == {
        (a, str(b)): len(work.questions) for a in attacks for b in (32, 16, 8, 4)
    }
    clean = work.study.scores(work.trained("random", 0), "clean", [work.fixed], work.questions)
    assert len(work.matrix(work.trained("random", 0), "random pair_0", work.fewer[:2]))  # a method's name may have a blank
    assert scores.select(frame, work.fixed.name, "none")["f1"].tolist() == clean["f1"].tolist()


def test_the_attacker_raises_the_loss_it_aims_at(work, frame):
    for p in ("32", "8", "4"):
        clean, own = (scores.select(frame, p, attack)["loss"] for attack in ("none", f"PGD at {p}"))
        assert own.mean() > clean.mean()


def test_attackers_compute_in_the_mixed_precision_and_answers_in_fp32(work, model, monkeypatch):
    monkeypatch.setattr(work, "params", work.params.model_copy(update={"compute": Compute(mixed_precision="bf16")}))
    seen, attention = [], model.lm.config._attn_implementation

    def craft(batch):
        seen.append((torch.is_autocast_enabled("cpu"), model.lm.config._attn_implementation))
        return model.embed(batch.input_ids)

    def answer(batch, embeds):
        assert not torch.is_autocast_enabled("cpu") and model.lm.config._attn_implementation == attention
        return span_figures(model, batch, embeds)

    work.judged("mixed", model, craft, {"8": answer}, work.fewer)
    assert set(seen) == {(True, "eager")}


def test_defenders_draws_are_new_for_every_batch(work, model, monkeypatch):
    seen = []
    monkeypatch.setattr(robustness, "span_figures", lambda m, *_: seen.append(dict(m.configuration)))
    ways = work.finer(model, work.sets[0])
    for window in work.study.featurize(work.fewer)[:4]:
        ways["layer 0"](collate([window], 1), torch.empty(0))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_finer_draws_average_so_many_answers(work, model):
    finer = work.drawn_finer(model)
    halves = {f"per {kind}, {half}" for kind in ("layer", "token") for half in ("even", "odd")}
    assert set(finer["answered"]) == {"per batch", "per layer", "per token"} | halves
    assert set(finer.groupby(["answered", "attack"]).size()) == {len(work.fewer)}


def test_radii_have_every_attack_and_grow(work, model, frame):
    found = work.radii(model, frame)
    sizes = found.groupby(["epsilon", "attack", "answered"]).size()
    assert len(sizes) == 2 * 4 * 2 and set(sizes) == {len(work.questions)}
    own = found[(found["attack"] == "PGD at 8") & (found["answered"] == "8")].groupby("epsilon")["loss"].mean()
    assert own.index.tolist() == [0.25, 0.5] and own.is_monotonic_increasing  # nothing should survive the last
    gains = scores.gain_table(scores.gains(found, ["epsilon"], work.sets[0], ["4", "8"]), ["epsilon"], resamples=100)
    assert gains["epsilon"].tolist() == [0.25, 0.5] and set(gains["n"]) == {len(work.questions)}


def test_the_first_study_is_taken_at_its_word(work, model):
    assert [p.name for p in work.drawn_by_s0] == ["4", "8", "32"]
    found = work.one_draw(model)
    assert set(found["answered"]) == {"S0's RPI"} and set(found["attack"]) == {"none", "PGD, one draw a step"}
    assert found["id"].nunique() == len(work.questions)
