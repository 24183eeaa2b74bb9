"""The ledger says what the result files say, and nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from qatlib.report import ledger
from qatlib.report.verdicts import COLUMNS
from qatlib.report.verdicts.catalog import CLAIMS


def write(report: Path, stage: str, name: str, columns: list[str], rows: list[dict[str, object]]) -> None:
    folder = report / "results" / stage
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def effect(claim: str, value: float, verdict: str, table: str = "behind") -> dict[str, object]:
    figures = {
        "value": value,
        "value_low": value - 1,
        "value_high": value + 1,
        "margin": 1,
        "must_be": "> 0",
        "n": 100,
        "seeds": 3,
    }
    return {"claim": claim, "says": "…", "effect": f"{claim} effect", "table": table, "verdict": verdict} | figures


def untested(claim: str) -> dict[str, object]:
    return {"claim": claim, "says": "…", "effect": "not trained here", "n": 0, "seeds": 0, "table": "", "verdict": "not tested"}


@pytest.fixture
def report(tmp_path):
    write(tmp_path, "01_build", "claims", COLUMNS, [effect("C07", 5, "reproduced"), effect("C08", -3, "not reproduced")])
    write(tmp_path, "01_build", "behind", ["x"], [])
    write(tmp_path, "02_switchable_train", "claims", COLUMNS, [effect("C03", 2, "reproduced"), untested("C05")])
    write(tmp_path, "04_cpt", "claims", COLUMNS, [effect("C03", -2, "not reproduced", "gone"), effect("C16", 0.5, "undecided")])
    write(tmp_path, "04_cpt", "gaps", GAPS, [gap()])
    return tmp_path


def test_perplexity_of_a_worn_language_model_is_called_so(report):
    rows = [{"model": "pretrained", "perplexity": 20.0}, {"model": "teacher_full", "perplexity": 90.0}]
    write(report, "01_build", "teacher_perplexity", ["model", "perplexity"], rows)
    worn = effect("C19", 1, "undecided") | {"effect": "percent of perplexity, cpt shared against static, at 8"}
    write(report, "04_cpt", "claims", COLUMNS, [worn, effect("C16", 0.5, "undecided")])
    why = {e.id: e.why for e in ledger.read_ledger(report)}
    assert "took from 20 up (teacher full 90)" in why["C19"] and "perplexity" not in why["C16"]
    rows[1]["perplexity"] = 21.0
    write(report, "01_build", "teacher_perplexity", ["model", "perplexity"], rows)
    assert "took from" not in {e.id: e.why for e in ledger.read_ledger(report)}["C19"]


GAPS = ["model", "over", "precision", "difference", "difference_low", "difference_high", "p", "seeds"]


def gap(difference: float = -1.25, p: float = 0.2, seeds: int = 3) -> dict[str, object]:
    bounds = {"difference": difference, "difference_low": difference - 1.75, "difference_high": difference + 1.75}
    return {"model": "cpt shared", "over": "static", "precision": "4", "p": p, "seeds": seeds} | bounds


def said(report: Path) -> dict[str, str]:
    return {entry.id: entry.said for entry in ledger.read_ledger(report)}


def test_every_claim_has_its_line_and_its_verdict_from_the_files(report):
    verdicts = said(report)
    assert list(verdicts) == list(CLAIMS)
    assert verdicts["C07"] == "reproduced" and verdicts["C08"] == "not reproduced" and verdicts["C16"] == "undecided at this size"
    assert verdicts["C05"] == verdicts["C20"] == "not tested"


def test_a_claim_in_two_parts_is_reproduced_if_both_are(report):
    assert said(report)["C03"] == "not reproduced"
    write(report, "04_cpt", "claims", COLUMNS, [effect("C03", 2, "reproduced")])
    assert said(report)["C03"] == "reproduced"
    write(report, "04_cpt", "claims", COLUMNS, [untested("C03")])
    (entry,) = (e for e in ledger.read_ledger(report) if e.id == "C03")
    assert entry.said == "undecided at this size" and entry.why == "not trained here" and len(entry.effects) == 1


def test_what_was_not_tested_says_why(report):
    why = {entry.id: entry.why for entry in ledger.read_ledger(report)}
    assert why["C05"] == "not trained here" and why["C20"] == "05 adversarial has not come to it" and why["C07"] == ""


def test_every_figure_of_the_json_stands_in_the_table_it_names(report):
    found = json.loads(json.dumps(ledger.as_json(ledger.read_ledger(report), {})))
    effects = [(claim["id"], e) for claim in found["claims"] for e in claim["effects"]]
    assert len(effects) == 5
    for claim, e in effects:
        assert (report / e["href"]).is_file()
        rows = ledger.table(report, e["stage"], "claims")
        (row,) = (r for r in rows if r["claim"] == claim and r["effect"] == e["effect"])
        assert [e["value"], e["low"], e["high"]] == [float(row[k]) for k in ("value", "value_low", "value_high")]
    assert dict(effects)["C07"]["href"] == "results/01_build/behind.csv"


def test_questions_are_answered_from_the_tables_or_not_at_all(report):
    answers = ledger.answers(report, ledger.read_ledger(report))
    assert "−1.2 [−3.0, +0.5] at 4 bits" in answers[0].text and answers[0].links == ("results/04_cpt/gaps.csv",)
    assert answers[0].text.startswith(
        "CPT with a shared adapter, in F1, is not seen to help: better in 0, worse in 0, undecided in 1 of 1"
    )
    assert "Not trained beside it in this report: random shared, cpt shuffled, so that cycle and mixture" in answers[0].text
    assert all(a.text.startswith("Not tested in this report") and not a.links for a in answers[1:])


@pytest.mark.parametrize(
    ("difference", "p", "seeds", "found"),
    [
        (3, 0.01, 3, "helps: better in 1, worse in 0, undecided in 0"),
        (-3, 0.01, 3, "hurts more than it helps: better in 0, worse in 1, undecided in 0"),
        (3, 0.06, 3, "is not seen to help: better in 0, worse in 0, undecided in 1"),  # clear alone, not among the others
        (3, 0.01, 1, "is not seen to help: better in 0, worse in 0, undecided in 1 of 1 comparisons (fewer than 3 trainings)"),
    ],
)
def test_a_difference_counts_that_is_clear_among_all_and_between_trainings(report, difference, p, seeds, found):
    write(report, "04_cpt", "gaps", GAPS, [gap(difference, p, seeds)])
    assert found in ledger.answers(report, ledger.read_ledger(report))[0].text


@pytest.mark.parametrize(
    ("difference", "found"), [(-3, "it helps: better in 1"), (3, "it hurts more than it helps: better in 0")]
)
def test_a_lower_perplexity_is_better(report, difference, found):
    write(report, "04_cpt", "perplexity_gaps", GAPS, [gap(difference, 0.01, 3)])
    assert f"in perplexity {found}" in ledger.answers(report, ledger.read_ledger(report))[0].text


def test_methods_that_nothing_tells_apart_are_named_once(report):
    rows = [gap(8, 0.01, 3) | {"model": "joint"}, *(gap(1, 0.9, 3) | {"model": model} for model in ("cyclic", "distilled"))]
    write(report, "02_switchable_train", "method_gaps", GAPS, rows)
    text = ledger.answers(report, ledger.read_ledger(report))[3].text
    assert "Joint over static helps: better in 1" in text and "cyclic, distilled, each over static, is not seen to help" in text


def test_n_and_seeds_are_given_from_the_fewest_to_the_most(report):
    write(report, "01_build", "claims", COLUMNS, [effect("C07", 5, "reproduced") | {"n": n} for n in (60, 600)])
    entry = next(e for e in ledger.read_ledger(report) if e.id == "C07")
    assert entry.over_all("n") == "60–600" and entry.over_all("seeds") == "3"


@pytest.mark.parametrize("trained", [True, False])
def test_double_win_quants_own_training_is_quoted_or_said_to_be_missing(report, trained):
    columns = ["defence", "over", "attack", "difference", "difference_low", "difference_high", "p", "n"]
    row = dict(zip(columns, ("RPI {4, 8}", "static 32", "worst", -3, -4, -2, 0.01, 500), strict=True))
    write(report, "05_adversarial", "against_static", columns, [row])
    columns = ["training", "seed", "static", "gain", "gain_low", "gain_high", "n"]
    methods = ("random", "adversarial") if trained else ("random",)
    rows = [dict(zip(columns, (name, 1, "32", -1.5, -3.3, 0, 80), strict=True)) for name in methods]
    write(report, "05_adversarial", "trainings", columns, rows)
    text = ledger.answers(report, ledger.read_ledger(report))[1].text
    assert ("seed 1: RPI {4, 8} over static 32 under worst: −1.5 [−3.3, " in text) is trained
    assert ("Its training was not done in this report." in text) is not trained


def test_a_failed_check_stands_beside_every_verdict_that_it_weakens(report):
    write(report, "05_adversarial", "claims", COLUMNS, [effect("C20", -5, "not reproduced")])
    checks = ["check", "what", "value", "value_low", "value_high", "holds"]
    rows = [(7, "twice the steps", 9, 2, 16, "FAIL"), (3, "costs", 5, 4, 6, "pass")]
    write(report, "05_adversarial", "attack_checks", checks, [dict(zip(checks, row, strict=True)) for row in rows])
    why = {entry.id: entry.why for entry in ledger.read_ledger(report)}
    assert why["C20"] == "of the attacks check 7 failed (twice the steps 9.0 [2.0, 16.0])" and "check" not in why["C07"]


def test_the_leanest_configuration_is_one_that_is_not_shown_to_lose(report):
    columns = ["budget", "file", "average_bits", "f1_change", "f1_change_low", "f1_change_high", "n"]
    rows = [(8, "a.yaml", 8, 0, -1, 1, 60), (4, "b.yaml", 3.9, -1, -3, 0.5, 60), (3, "c.yaml", 3, -9, -12, -6, 60)]
    write(report, "03_sensitivity_heatmaps", "recommended", columns, [dict(zip(columns, row, strict=True)) for row in rows])
    text = ledger.answers(report, ledger.read_ledger(report))[2].text
    assert "60 questions do not show F1 to be lost: 4, as" in text and "(b.yaml)" in text
    assert "would not show a loss of up to 3 points" in text
    assert "within 3 bits (3.00 spent) F1 −9.0 [−12.0, −6.0] points" in text


def test_an_older_reports_tables_are_read_as_far_as_they_go(report):
    write(report, "04_cpt", "gaps", GAPS[:-2], [{key: value for key, value in gap(3, 0.01).items() if key in GAPS[:-2]}])
    write(report, "03_sensitivity_heatmaps", "recommended", ["budget", "file"], [{"budget": 8, "file": "a.yaml"}])
    cpt, _, configuration, _ = ledger.answers(report, ledger.read_ledger(report))
    assert "undecided in 1 of 1" in cpt.text and configuration.text.startswith("Not tested")


def test_a_figure_that_is_none_is_said_and_not_drawn(report):
    nothing = effect("C07", 5, "undecided") | {"value": "", "value_low": "", "value_high": ""}
    write(report, "01_build", "claims", COLUMNS, [nothing])
    (entry,) = (e for e in ledger.read_ledger(report) if e.id == "C07")
    assert entry.said == "undecided at this size" and entry.effects[0].interval == "no figure"
    assert ledger.as_json([entry], {})["claims"][0]["effects"][0]["value"] is None


def test_a_verdict_that_is_none_is_refused(report):
    write(report, "01_build", "claims", COLUMNS, [effect("C07", 5, "surely")])
    with pytest.raises(ValueError, match="'surely'"):
        ledger.read_ledger(report)
