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
    gap = {"model": "cpt shared", "over": "static", "precision": "4", "difference": -1.25}
    columns = [*gap, "difference_low", "difference_high"]
    write(tmp_path, "04_cpt", "gaps", columns, [gap | {"difference_low": -3, "difference_high": 0.5}])
    return tmp_path


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
        "CPT with a shared adapter is not seen to help: better in 0, worse in 0, undecided in 1 of 1"
    )
    assert all(a.text.startswith("Not tested in this report") and not a.links for a in answers[1:])


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
