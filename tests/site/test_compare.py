"""Reports side by side: pairs on common questions, what differs, and nothing that is not in the folders."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qatlib.site.compare import Report, compare, main, paired_differences

OPTIONS = {"resamples": 50}


def made(folder: Path, f1: float, questions: range, seed: int = 0) -> Path:
    stage = folder / "results" / "02_switchable_train"
    (stage / "figures").mkdir(parents=True)
    (folder / "provenance").mkdir()
    scores = pd.DataFrame({"id": [f"q{i}" for i in questions], "paragraph": [f"p{i // 2}" for i in questions]})
    scores.assign(em=0.0, f1=f1, loss=1.0).to_csv(stage / "scores_switchable_8.csv", index=False)
    pd.DataFrame({"precision": ["<b>8</b>"], "f1": [f1], "f1_low": [f1 - 1], "f1_high": [f1 + 1]}).to_csv(
        stage / "accuracy.csv", index=False
    )
    (stage / "figures" / "curves.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    provenance = {"parameters": {"seed": seed, "data": {"max_length": 128}}, "code": {"commit": "abc"}}
    (folder / "provenance" / "02_switchable_train.json").write_text(json.dumps(provenance))
    return folder


@pytest.fixture
def two(tmp_path):
    return made(tmp_path / "a", 60.0, range(20)), made(tmp_path / "b", 65.0, range(10, 40), seed=1)


def test_differences_are_paired_on_the_questions_in_common(two):
    found = paired_differences([Report(f.name, f) for f in two], **OPTIONS)
    (row,) = found[found["metric"] == "F1"].to_dict("records")
    assert (row["run"], row["over"], row["evaluation"], row["n"]) == ("b", "a", "switchable 8", 10)
    assert row["difference"] == row["difference_low"] == row["difference_high"] == 5.0


def test_ids_are_text_whatever_they_spell(two):
    ids = ["NA", "null", "007", "7", "1e5", "True", "", "a,b", " "]
    for folder in two:
        scores = pd.DataFrame({"id": ids, "paragraph": ids, "em": 0.0, "f1": 1.0, "loss": 1.0})
        scores.to_csv(folder / "results" / "02_switchable_train" / "scores_switchable_8.csv", index=False)
    found = paired_differences([Report(f.name, f) for f in two], **OPTIONS)
    assert set(found["n"]) == {len(ids)}


def test_perplexities_are_paired_on_the_paragraphs_in_common(two):
    for folder, nll in zip(two, (20.0, 30.0), strict=True):
        text = pd.DataFrame({"paragraph": ["p0", "p1", folder.name], "nll": nll, "tokens": 10, "correct": 1})
        text.to_csv(folder / "results" / "02_switchable_train" / "perplexity_switchable_8.csv", index=False)
        gaps = pd.DataFrame({"model": ["cpt"], "over": ["static"], "difference": [1.0]})
        gaps.to_csv(folder / "results" / "02_switchable_train" / "perplexity_gaps.csv", index=False)
    found = paired_differences([Report(f.name, f) for f in two], **OPTIONS)
    (row,) = found[found["metric"] == "perplexity"].to_dict("records")
    assert (row["n"], row["value"], row["value_over"]) == (2, pytest.approx(np.exp(3)), pytest.approx(np.exp(2)))
    assert row["difference"] == pytest.approx(100 * (np.e - 1))


def test_the_main_attacks_are_paired_cell_by_cell(two):
    for folder, f1 in zip(two, (40.0, 30.0), strict=True):
        stage = folder / "results" / "05_adversarial"
        stage.mkdir()
        rows = [
            {"experiment": experiment, "attack": "worst", "answered": "8", "id": i, "paragraph": i, "em": 0.0, "f1": f1}
            for i in "abcd"
            for experiment in ("main", "radii")
        ]
        pd.DataFrame(rows).to_csv(stage / "attack_rows.csv", index=False)
    found = paired_differences([Report(f.name, f) for f in two], **OPTIONS)
    (row,) = found[(found["evaluation"] == "attack worst, answered at 8") & (found["metric"] == "F1")].to_dict("records")
    assert (row["n"], row["difference"]) == (4, -10.0)
    assert found["p"].between(0, 1).all()


def test_a_long_table_says_where_it_was_cut(two, tmp_path):
    for folder in two:
        pd.DataFrame({"x": range(61)}).to_csv(folder / "results" / "02_switchable_train" / "long.csv", index=False)
    assert compare(two, tmp_path / "compare.html", **OPTIONS).read_text().count("a, the first 60 of its 61 rows") >= 1


def test_without_common_questions_there_is_no_pair(tmp_path):
    folders = made(tmp_path / "a", 60.0, range(10)), made(tmp_path / "b", 65.0, range(20, 30))
    assert paired_differences([Report(f.name, f) for f in folders], **OPTIONS).empty
    assert "No evaluation of these reports has questions in common." in compare(folders, tmp_path / "out.html").read_text()


def test_the_page_shows_what_differs_tables_and_figures_and_escapes_them(two, tmp_path):
    page = compare(two, tmp_path / "compare.html", **OPTIONS).read_text()
    assert "parameters.seed" in page and "max_length" not in page and "code.commit" not in page
    assert all(page.count(f'id="{target}"') == 1 for target in re.findall(r'href="#([^"]+)"', page))
    assert page.count("data:image/svg+xml") == 2 and "65.0 [64.0, 66.0]" in page
    assert "<b>8</b>" not in page and "&lt;b&gt;8&lt;/b&gt;" in page


@pytest.mark.parametrize("wrong", ["one", "twice", "no report"])
def test_what_cannot_be_compared_is_said_in_a_sentence(wrong, two, tmp_path, capsys):
    given = {"one": [two[0]], "twice": [two[0], two[0]], "no report": [two[0], tmp_path]}[wrong]
    with pytest.raises(SystemExit) as stopped:
        main(["--runs", shlex.join(map(str, given)), "--out", str(tmp_path / "out.html")])
    assert stopped.value.code == 2 and not (tmp_path / "out.html").exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("is no report" in said) == (wrong == "no report")
