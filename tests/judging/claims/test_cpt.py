"""What notebook 4's verdicts are made of, on scores whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qatlib.judging import results
from qatlib.judging.claims import cpt
from qatlib.judging.results import Cell
from tests.judging.claims.scores import said, scores, widths

OPTIONS = {"resamples": 100}


def perplexities(change: float, seeds=(0, 1, 2), precision: str = "8") -> pd.DataFrame:
    base = pd.DataFrame({"paragraph": list("abcd"), "nll": [3.0, 4, 5, 6], "tokens": [3, 3, 4, 4], "correct": [1, 2, 2, 2]})
    models = {"static": base, "cpt shared": base.assign(nll=base["nll"] + base["tokens"] * np.log1p(change / 100))}
    return pd.concat(
        [x.assign(model=m, precision=precision, seed=seed, **widths(precision)) for m, x in models.items() for seed in seeds],
        ignore_index=True,
    )


STUDIES = {  # as S1 and S4 have it
    "random separate": {"8": 70.0, "6": 60, "4": 50},
    "cpt separate": {"8": 71.0, "6": 62, "4": 60},
    "cpt shared": {"8": 74.0, "6": 72, "4": 61},
}


def test_what_the_studies_saw_is_reproduced_where_it_is_there():
    f1 = STUDIES | {"cpt shared": {"8": 74.0, "6": 75, "4": 61}}
    kept = results.kept(
        scores({"cpt shared": {"mean": 97}, "teacher": {"mean": 100}}), Cell("cpt shared", "mean"), Cell("teacher", "mean")
    )
    table = cpt.verdicts(scores(f1), perplexities(0.5), {"cpt shared": kept}, **OPTIONS)
    assert set(said(table).values()) == {"reproduced"} and set(said(table)) == {"C03", "C16", "C17", "C18", "C19"}
    by_effect = table.set_index("effect")["value"]
    assert by_effect["gain of cpt shared over random separate at 6 bits less that at 8"] == pytest.approx(15 - 4)
    assert by_effect["gain of cpt separate over random separate at 4 bits"] == pytest.approx(10)
    assert by_effect["shared over separate adapters, mean of all precisions"] == pytest.approx((3 + 13 + 1) / 3)


def test_the_opposite_is_not_reproduced():
    f1 = {
        "random separate": {"8": 70.0, "6": 70, "4": 70},
        "cpt separate": {"8": 75.0, "6": 72, "4": 68},
        "cpt shared": {"8": 70.0, "6": 68, "4": 69},
    }
    table = cpt.verdicts(scores(f1), perplexities(5), {}, **OPTIONS)
    assert said(table) == {"C03": "not tested"} | dict.fromkeys(("C16", "C17", "C18", "C19"), "not reproduced")


def test_one_seed_is_undecided_with_its_figures_and_nothing_trained_without():
    table = cpt.verdicts(scores(STUDIES, seeds=[0]), perplexities(0, seeds=[0]), {}, **OPTIONS)
    assert set(said(table).values()) == {"undecided", "not tested"} and table["value"].notna().sum() == len(table) - 1
    table = cpt.verdicts(scores({"static": {"8": 70.0}}), perplexities(0).query("model == 'static'"), {}, **OPTIONS)
    assert table["effect"].str.startswith("takes ").all() and set(table["verdict"]) == {"not tested"} and len(table) == 5


def test_widths_that_a_study_did_not_have_do_not_speak_against_it():
    more = {name: at | {"3": 90.0 if name == "cpt shared" else 10, "2": 5} for name, at in STUDIES.items()}
    effects = set(cpt.verdicts(scores(more), perplexities(0), {}, **OPTIONS)["effect"])
    assert not any("less that at 3" in name or "less that at 2" in name for name in effects)
    assert {f"gain of cpt shared over random separate at 6 bits less that at {p}" for p in (8, 4)} <= effects
    narrow = perplexities(5, precision="2")
    assert said(cpt.verdicts(scores(STUDIES), narrow, {}, **OPTIONS))["C19"] == "not tested"


def test_gains_pair_questions_and_seeds():
    a, b = scores({"a": {"8": 60.0, "4": 50}}), scores({"b": {"8": 55.0, "3": 10}})
    gained = cpt.gains(pd.concat([a, b.sample(frac=1, random_state=0)]), "a", "b")
    assert set(gained["precision"]) == {"8"} and len(gained) == 120 and gained["gain"].to_numpy() == pytest.approx(5.0)


def test_the_teacher_is_met_by_the_pattern_or_by_the_cosine():
    teacher = scores({"teacher": {"32": 80.0}}, seeds=[0])
    both = scores({"cpt shared": {"8": 60.0, "4": 20}, "pattern shared": {"8": 80.0, "4": 40}, "static": {"8": 80.0}})
    kept = cpt.kept_of_teacher(both, teacher, **OPTIONS)
    assert list(kept) == ["pattern shared"] and kept["pattern shared"].value == pytest.approx(75, abs=0.5)
    kept = cpt.kept_of_teacher(both.query("model != 'pattern shared'"), teacher, **OPTIONS)
    assert list(kept) == ["cpt shared"] and kept["cpt shared"].value == pytest.approx(50, abs=0.5)
    assert cpt.kept_of_teacher(both.query("model == 'static'"), teacher) == {}
