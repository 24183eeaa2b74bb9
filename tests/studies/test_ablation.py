"""The ablation: two schemes that differ in one part alone, each measured once on the saved teacher."""

from __future__ import annotations

import dataclasses

import pytest

from qatlib.arguments import QuantizerArguments
from qatlib.judging import results
from qatlib.studies.ablation import PLAIN, WHOLE, ablation, variants
from qatlib.studies.study import Study

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


def test_all_variants_answer_the_same_questions_and_the_plain_one_is_exact_at_32_bits(make_desk, tmp_path, monkeypatch):
    study = Study(make_desk(tmp_path))
    study.teacher("full")[0].save(tmp_path / "t", study.tokenizer)
    section = study.params.post_training.ablation
    scores, perplexities = ablation(study, tmp_path / "t", section)
    names, widths = [v.name for v in variants(section.quantizer)], [p.name for p in section.precisions]
    expected = [results.Cell(n, p) for n in names for p in (["32", *widths] if n == PLAIN else widths)]
    assert results.cells(scores) == results.cells(perplexities) == expected
    assert scores.groupby(["model", "precision"])["id"].apply(tuple).nunique() == 1

    def divergence(name: str, at: str) -> float:
        rows = results.pick(perplexities, results.Cell(name, at))
        return rows["divergence"].sum() / rows["tokens"].sum()

    assert divergence(PLAIN, "32") < 1e-6 < divergence("with start", "w2a8") < divergence(PLAIN, "w2a8")
    monkeypatch.setattr(Study, "saved_model", None)  # what is finished prepares no model again
    again = ablation(study, tmp_path / "t", section)
    assert again[0].equals(scores) and again[1].equals(perplexities)
