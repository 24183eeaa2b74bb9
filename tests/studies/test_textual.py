"""Attacks on text on a model of the smoke profile: what may be changed, and what a draw is the mean of."""

from __future__ import annotations

import pytest

from qatlib.qa import toyqa
from qatlib.qa.squad import Loaded, load_questions
from qatlib.studies.textual import Textual


def test_attacked_text_keeps_its_paragraph_and_its_answers(robustness, model):
    text = Textual(robustness, model)
    originals = {q.id: q for q in robustness.study.validation}
    for found in (text.noisy(), text.word_attack()):
        assert all(originals[row.id].paragraph == row.paragraph for row in found.itertuples())
        assert set(found["family"]) == {"none", "text"}
    assert list(text.passes) == ["words at 32", "words at 8", "words at 4", "words EOT {8, 4}"]
    assert text.passes["words EOT {8, 4}"] > text.passes["words at 8"] > 1
    path = robustness.study.stage.checkpoints("words_0") / "attacked.json"
    for q in load_questions([path], "validation"):
        original = originals[q.id]
        assert q.question == original.question and [a.text for a in q.answers] == [a.text for a in original.answers]
        changed = [a != b for a, b in zip(q.context.split(), original.context.split(), strict=True)]
        assert sum(changed) <= 2


def test_noise_changes_perplexity_and_a_draw_is_the_mean(robustness, model):
    found = Textual(robustness, model).perplexities().set_index(["precision", "paragraph"])
    assert (found["noisy_nll"] != found["nll"]).all()
    mean = (found.loc["8", "nll"] + found.loc["4", "nll"]) / 2
    assert found.loc["RPI {8, 4}", "nll"].to_dict() == pytest.approx(mean.to_dict())


def test_shifted_questions_are_as_many_as_those_judged_in_full(robustness, model):
    found = Textual(robustness, model).shifted()
    assert set(found.groupby("answered").size()) == {len(robustness.questions)}
    assert not set(found["id"]) & {q.id for q in robustness.study.validation}


def test_other_shifted_questions_are_answered_anew_and_the_first_ones_are_kept(robustness, model, monkeypatch):
    desk = robustness.study.stage
    Textual(robustness, model).shifted()
    before = len(desk.computed)
    other = toyqa.generate(12, 9, "shifted")
    with monkeypatch.context() as patched:
        patched.setattr("qatlib.studies.textual.load_shifted", lambda *_: Loaded(other, 0))
        assert set(Textual(robustness, model).shifted()["id"]) == {q.id for q in other}
    assert len(desk.computed) == before + 1
    Textual(robustness, model).shifted()
    assert len(desk.computed) == before + 1
