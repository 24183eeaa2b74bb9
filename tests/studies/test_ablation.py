"""The ablation: two schemes that differ in one part alone, each measured once on the saved teacher."""

from __future__ import annotations

import dataclasses

import pytest

from qatlib.arguments import QuantizerArguments
from qatlib.judging import results
from qatlib.studies.ablation import PLAIN, WHOLE, ablation, variants
from qatlib.studies.study import Study
from qatlib.studies.trainings import Trainings

BEST = QuantizerArguments(clipping="mse", rotation="hadamard", grid="midrise", rounding="compensated")


def differences(a, b) -> set[str]:
    options = {f.name for f in dataclasses.fields(a.quantizer) if getattr(a.quantizer, f.name) != getattr(b.quantizer, f.name)}
    return options | ({"start"} if a.start != b.start else set())


@pytest.mark.parametrize("best", [BEST, dataclasses.replace(BEST, weights="per_group", group_size=32)])
def test_every_variant_differs_in_its_part_alone(best):
    found = {v.name: v for v in variants(best)}
    assert len(found) == len(variants(best))  # each name once
    parts = differences(found[PLAIN], found[WHOLE]) - {"group_size"}
    assert parts > {"clipping", "rotation", "grid", "rounding"}
    for change, ends in (("added", PLAIN), ("removed", WHOLE)):
        mine = [v for v in found.values() if v.change == change]
        assert {v.part for v in mine} == parts
        for v in mine:
            assert differences(v, found[ends]) - {"group_size"} == {v.part}
            assert {v.having, v.lacking} == {v.name, ends} and (v.having == ends) == (change == "removed")


def test_the_plain_scheme_is_that_of_the_studies():
    plain = next(v for v in variants(BEST) if v.name == PLAIN)
    options = plain.quantizer
    assert (options.clipping, options.rounding, options.rotation, plain.start) == ("minmax", "nearest", "none", "zero")


@pytest.fixture(scope="module")
def trainings(make_desk, tmp_path_factory) -> Trainings:
    study = Study(make_desk(tmp_path_factory.mktemp("ablation")))
    path = tmp_path_factory.mktemp("teacher") / "t"
    study.teacher("full")[0].save(path, study.tokenizer)
    return Trainings(study, path)


def test_all_variants_answer_the_same_questions_and_the_plain_one_is_exact_at_32_bits(trainings, monkeypatch):
    section = trainings.params.post_training.ablation
    scores, perplexities = ablation(trainings, section)
    names, widths = [v.name for v in variants(section.quantizer)], [p.name for p in section.precisions]
    expected = [results.Cell(n, p) for n in names for p in (["32", *widths] if n == PLAIN else widths)]
    assert results.cells(scores) == results.cells(perplexities) == expected
    assert scores.groupby(["model", "precision"])["id"].apply(tuple).nunique() == 1
    exact = results.pick(perplexities, results.Cell(PLAIN, "32"))
    assert (exact["divergence"].abs() < 1e-5).all()
    assert (results.pick(perplexities, results.Cell(PLAIN, "w2a8"))["divergence"] > 1e-3).all()
    monkeypatch.setattr(trainings, "prepared", None)  # what is finished prepares no model again
    again = ablation(trainings, section)
    assert again[0].equals(scores) and again[1].equals(perplexities)
