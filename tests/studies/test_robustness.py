"""Attacks of one run on a model of the smoke profile: what they see, and that draws are those they are said to be."""

from __future__ import annotations

import torch

from qatlib.judging import attack_scores as scores
from qatlib.precision import FULL_PRECISION
from qatlib.qa.evaluate import span_figures
from qatlib.qa.loss import collate
from qatlib.schedule import make_schedule

METHODS = ("random", "random pair", "plain", "cpt", "consistency", "adversarial")


def test_trainings_differ_in_what_their_names_say(robustness):
    recipes = {method: robustness.recipe(method, 0) for method in METHODS}
    assert {r.settings.adapters for r in recipes.values()} == {"shared"}
    passes = {m: r.settings.training.steps * r.settings.schedule.passes_a_step(len(r.precisions)) for m, r in recipes.items()}
    assert set(passes.values()) == {robustness.section.passes}
    assert recipes["plain"].precisions == (FULL_PRECISION,) and recipes["cpt"].settings.schedule.name == "cpt"
    pair, taught = recipes["random pair"].settings, recipes["consistency"].settings
    assert taught.objective.name == "consistency" and pair == taught.model_copy(update={"objective": pair.objective})
    learning, infos = recipes["consistency"], robustness.trained("random", 0).infos
    schedule = make_schedule(learning.settings.schedule, learning.precisions, infos, seed=0, steps=60)
    drawn = {p for step in range(60) for c in schedule(step) for p in c.values()}
    assert drawn == set(robustness.widths)  # it learns at every precision, as the others do
    assert all(set(r.judged) == set(robustness.widths) for r in recipes.values())
    assert [m for m, r in recipes.items() if r.settings.adversary] == ["adversarial"]


def test_every_attack_is_answered_at_every_precision(robustness, frame):
    attacks = ["none", "noise", *(f"PGD at {b}" for b in (32, 16, 8, 4)), "EOT {8, 4}", "EOT {16, 32}"]
    made = ["none", "noise", *["gradient"] * 6]
    targets = ["none", "none", "32", "16", "8", "4", "{8, 4}", "{16, 32}"]
    kinds = frame.drop_duplicates("attack")
    assert (kinds["attack"].tolist(), kinds["family"].tolist(), kinds["target"].tolist()) == (attacks, made, targets)
    assert frame.groupby(["attack", "answered"], sort=False).size().to_dict() == {
        (a, str(b)): len(robustness.questions) for a in attacks for b in (32, 16, 8, 4)
    }
    clean = robustness.study.scores(robustness.trained("random", 0), "clean", [robustness.fixed], robustness.questions)
    assert len(
        robustness.matrix(robustness.trained("random", 0), "random pair_0", robustness.fewer[:2])
    )  # a method's name may have a blank
    assert scores.select(frame, robustness.fixed.name, "none")["f1"].tolist() == clean["f1"].tolist()


def test_the_attacker_raises_the_loss_it_aims_at(robustness, frame):
    for p in ("32", "8", "4"):
        clean, own = (scores.select(frame, p, attack)["loss"] for attack in ("none", f"PGD at {p}"))
        assert own.mean() > clean.mean()


def test_attackers_compute_in_the_mixed_precision_and_answers_in_fp32(robustness, model, monkeypatch):
    monkeypatch.setattr(robustness.study, "mixed_precision", "bf16")
    seen, attention = [], model.lm.config._attn_implementation

    def craft(batch):
        seen.append((torch.is_autocast_enabled("cpu"), model.lm.config._attn_implementation))
        return model.embed(batch.input_ids)

    def answer(batch, embeds):
        assert not torch.is_autocast_enabled("cpu") and model.lm.config._attn_implementation == attention
        return span_figures(model, batch, embeds)

    robustness.judged("mixed", model, craft, {"8": answer}, robustness.fewer)
    assert set(seen) == {(True, "eager")}


def test_defenders_draws_are_new_for_every_batch(robustness, model, monkeypatch):
    seen = []
    monkeypatch.setattr("qatlib.studies.robustness.span_figures", lambda m, *_: seen.append(dict(m.configuration)))
    ways = robustness.finer(model, robustness.sets[0])
    for window in robustness.study.featurize(robustness.fewer)[:4]:
        ways["layer 0"](collate([window], 1), torch.empty(0))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_finer_draws_average_so_many_answers(robustness, model):
    finer = robustness.drawn_finer(model)
    halves = {f"per {kind}, {half}" for kind in ("layer", "token") for half in ("even", "odd")}
    assert set(finer["answered"]) == {"per batch", "per layer", "per token"} | halves
    assert set(finer.loc[finer["half"] == "all", "answered"]) == {"per batch", "per layer", "per token"} == set(finer["drawn"])
    assert finer.groupby("attack", sort=False)["target"].first().tolist() == ["none", "per batch", "per layer", "per token"]
    assert set(finer.groupby(["answered", "attack"]).size()) == {len(robustness.fewer)}


def test_radii_have_every_attack_and_grow(robustness, model, frame):
    found = robustness.radii(model, frame)
    sizes = found.groupby(["radius", "attack", "answered"]).size()
    assert len(sizes) == 2 * 4 * 2 and set(sizes) == {len(robustness.questions)}
    assert all(found["epsilon"] == found["radius"].where(found["family"] != "none", 0))
    own = found[(found["attack"] == "PGD at 8") & (found["answered"] == "8")].groupby("epsilon")["loss"].mean()
    assert own.index.tolist() == [0.25, 0.5] and own.is_monotonic_increasing  # nothing should survive the last
    gains = scores.gain_table(scores.gains(found, ["radius"], robustness.sets[0], ["4", "8"]), ["radius"], resamples=100)
    assert gains["radius"].tolist() == [0.25, 0.5] and set(gains["n"]) == {len(robustness.questions)}


def test_the_first_study_is_taken_at_its_word(robustness, model):
    assert [p.name for p in robustness.drawn_by_s0] == ["4", "8", "32"]
    found = robustness.one_draw(model)
    assert set(found["answered"]) == {"S0's RPI"} and set(found["attack"]) == {"none", "PGD, one draw a step"}
    assert found["id"].nunique() == len(robustness.questions)
