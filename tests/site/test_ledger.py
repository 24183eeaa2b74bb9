"""The ledger says what the result files say, and nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from qatlib.judging.claims import COLUMNS
from qatlib.judging.claims.catalog import CLAIMS
from qatlib.judging.published import PublishedError
from qatlib.site import ledger


def write(report: Path, stage: str, name: str, columns: list[str], rows: list[dict[str, object]]) -> None:
    folder = report / "results" / stage
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def ran(report: Path, stage: str, params: dict[str, object] | None = None, code: str | None = None) -> None:
    """Make it a report in which a stage has run with some params, by the present code if nothing else is said."""
    (report / "provenance").mkdir(exist_ok=True)
    found = {"parameters": params or {}, "code": {"library_sha256": code}}
    (report / "provenance" / f"{stage}.json").write_text(json.dumps(found))


def effect(claim: str, value: float, verdict: str, table: str = "claims") -> dict[str, object]:
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


SCALES = (("C07", 5, "reproduced"), ("C08", -3, "not reproduced"))


@pytest.fixture
def report(tmp_path):
    write(tmp_path, "01_build", "claims", COLUMNS, [effect(*c, "calibration_gap") for c in SCALES])
    write(tmp_path, "01_build", "calibration_gap", ["model"], [])
    write(tmp_path, "02_switchable_train", "claims", COLUMNS, [effect("C03", 2, "reproduced"), untested("C05")])
    write(tmp_path, "04_cpt", "claims", COLUMNS, [effect("C03", -2, "not reproduced"), effect("C16", 0.5, "undecided")])
    return tmp_path


def test_perplexity_of_a_worn_language_model_is_called_so(report):
    rows = [{"model": "pretrained", "perplexity": 20.0}, {"model": "teacher_full", "perplexity": 90.0}]
    write(report, "01_build", "teacher_perplexity", ["model", "perplexity"], rows)
    worn = effect("C19", 1, "undecided") | {"effect": "percent of perplexity, cpt shared against static, at 8"}
    write(report, "04_cpt", "claims", COLUMNS, [worn, effect("C16", 0.5, "undecided")])
    why = {e.id: e.why for e in ledger.read_ledger(report)}
    assert "raised perplexity from 20 (teacher full 90)" in why["C19"] and "perplexity" not in why["C16"]
    rows[1]["perplexity"] = 21.0
    write(report, "01_build", "teacher_perplexity", ["model", "perplexity"], rows)
    assert "took from" not in {e.id: e.why for e in ledger.read_ledger(report)}["C19"]


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
    assert why["C05"] == "not trained here" and why["C20"] == "05 adversarial has not run" and why["C07"] == ""


def test_every_figure_of_the_json_stands_in_the_table_it_names(report):
    found = json.loads(json.dumps(ledger.as_json(ledger.read_ledger(report), {})))
    effects = [(claim["id"], e) for claim in found["claims"] for e in claim["effects"]]
    assert len(effects) == 5
    for claim, e in effects:
        assert (report / e["href"]).is_file()
        rows = ledger.claim_rows(report, e["stage"])
        (row,) = (r for r in rows if r["claim"] == claim and r["effect"] == e["effect"])
        assert [e["value"], e["low"], e["high"]] == [float(row[k]) for k in ("value", "value_low", "value_high")]
    assert dict(effects)["C07"]["href"] == "results/01_build/calibration_gap.csv"


def test_a_stages_tables_lead_back_to_the_claims_that_rest_on_them(report):
    entries = ledger.read_ledger(report)
    assert ledger.claims_behind(entries, "01_build") == {"table-calibration_gap": ["C07", "C08"]}
    write(report, "04_cpt", "claims", COLUMNS, [effect("C16", 0.5, "undecided", "gaps")] * 2)
    write(report, "04_cpt", "gaps", ["model"], [])
    assert ledger.claims_behind(ledger.read_ledger(report), "04_cpt") == {"table-gaps": ["C16"]}


def test_n_and_seeds_are_given_from_the_fewest_to_the_most(report):
    write(report, "01_build", "claims", COLUMNS, [effect("C07", 5, "reproduced") | {"n": n} for n in (60, 600)])
    entry = next(e for e in ledger.read_ledger(report) if e.id == "C07")
    assert entry.over_all("n") == "60–600" and entry.over_all("seeds") == "3"


def test_a_failed_check_stands_beside_every_verdict_that_it_weakens(report):
    write(report, "05_adversarial", "claims", COLUMNS, [effect("C20", -5, "not reproduced"), effect("C22", 5, "reproduced")])
    checks = ["check", "what", "value", "value_low", "value_high", "holds"]
    rows = [(7, "twice the steps", 9, 2, 16, "FAIL"), (3, "costs", 5, 4, 6, "pass")]
    write(report, "05_adversarial", "attack_checks", checks, [dict(zip(checks, row, strict=True)) for row in rows])
    why = {entry.id: entry.why for entry in ledger.read_ledger(report)}
    assert why["C20"] == "of the attacks check 7 failed (twice the steps 9.0 [2.0, 16.0])" and not why["C22"]


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


def test_a_claim_without_a_row_in_a_stage_that_has_run_is_an_error_or_an_older_report(report):
    ran(report, "04_cpt")
    with pytest.raises(PublishedError, match="a row on C17 in the claims of 04_cpt is declared, and missing"):
        ledger.read_ledger(report)
    ran(report, "04_cpt", code="of another time")
    why = {e.id: e.why for e in ledger.read_ledger(report)}
    assert why["C17"].startswith("This report was made before the present code") and why["C16"] == ""


def test_a_table_that_a_claim_names_must_be_there(report):
    write(report, "04_cpt", "claims", COLUMNS, [effect("C16", 0.5, "undecided", "gaps")])
    with pytest.raises(PublishedError, match="the table gaps, which a claim rests on"):
        ledger.read_ledger(report)
    write(report, "04_cpt", "claims", COLUMNS, [effect("C16", 0.5, "undecided", "gasp")])
    with pytest.raises(PublishedError, match="no table 'gasp' is declared .*; close to it are .*gaps"):
        ledger.read_ledger(report)
