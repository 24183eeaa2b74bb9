"""The studies' questions are answered with what the result files say, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from qatlib.judging.published import PublishedError
from qatlib.site.answers import AnsweredQuestion, answers
from qatlib.site.ledger import read_ledger
from tests.site.test_ledger import ran, write

GAPS = ["model", "over", "precision", "difference", "difference_low", "difference_high", "p", "seeds"]


def gap(difference: float = -1.25, p: float = 0.2, seeds: int = 3) -> dict[str, object]:
    bounds = {"difference": difference, "difference_low": difference - 1.75, "difference_high": difference + 1.75}
    return {"model": "cpt shared", "over": "static", "precision": "4", "p": p, "seeds": seeds} | bounds


@pytest.fixture
def report(tmp_path):
    write(tmp_path, "04_cpt", "gaps", GAPS, [gap()])
    return tmp_path


def answered(report: Path) -> list[AnsweredQuestion]:
    return answers(report, read_ledger(report))


def answered_alone(report: Path) -> list[AnsweredQuestion]:
    """Without a ledger, which has requirements of its own."""
    return answers(report, [])


def test_questions_are_answered_from_the_tables_or_not_at_all(report):
    found = answered(report)
    assert "−1.2 [−3.0, +0.5] at 4 bits" in found[0].text and found[0].links == ("results/04_cpt/gaps.csv",)
    assert found[0].text.startswith(
        "CPT with a shared adapter, in F1, is not seen to help: better in 0, worse in 0, undecided in 1 of 1"
    )
    assert "Not trained beside it in this report: random shared, cpt shuffled, so that cycle and mixture" in found[0].text
    assert all(a.text.startswith("Not tested in this report") and not a.links for a in found[1:])


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
    assert found in answered(report)[0].text


@pytest.mark.parametrize(
    ("difference", "found"), [(-3, "it helps: better in 1"), (3, "it hurts more than it helps: better in 0")]
)
def test_a_lower_perplexity_is_better(report, difference, found):
    write(report, "04_cpt", "perplexity_gaps", GAPS, [gap(difference, 0.01, 3)])
    assert f"in perplexity {found}" in answered(report)[0].text


def test_methods_that_nothing_tells_apart_are_named_once(report):
    rows = [gap(8, 0.01, 3) | {"model": "joint"}, *(gap(1, 0.9, 3) | {"model": model} for model in ("cyclic", "distilled"))]
    write(report, "02_switchable_train", "method_gaps", GAPS, rows)
    text = answered(report)[3].text
    assert "Joint over static helps: better in 1" in text and "cyclic, distilled, each over static, is not seen to help" in text


@pytest.mark.parametrize("trained", [True, False])
def test_double_win_quants_own_training_is_quoted_or_said_to_be_missing(report, trained):
    columns = ["defence", "over", "attack", "attacker", "difference", "difference_low", "difference_high", "p", "n"]
    row = dict(zip(columns, ("RPI {4, 8}", "static 32", "worst", "worst", -3, -4, -2, 0.01, 500), strict=True))
    write(report, "05_adversarial", "against_static", columns, [row])
    columns = ["training", "seed", "static", "gain", "gain_low", "gain_high", "n"]
    methods = ("random", "adversarial") if trained else ("random",)
    rows = [dict(zip(columns, (name, 1, "32", -1.5, -3.3, 0, 80), strict=True)) for name in methods]
    write(report, "05_adversarial", "trainings", columns, rows)
    text = answered(report)[1].text
    assert ("seed 1: RPI {4, 8} over static 32 under worst: −1.5 [−3.3, " in text) is trained
    assert ("Its training was not done in this report." in text) is not trained


def test_drawing_precisions_is_judged_by_the_worst_attack_and_without_the_control(report):
    columns = ["defence", "over", "attack", "attacker", "difference", "difference_low", "difference_high", "p", "n"]
    cases = [("{4, 8}", "adaptive", 3), ("{4, 8}", "worst", -3), ("{16, 32}", "worst", 3)]
    rows = [(f"RPI {drawn}", "static 8", "any name", attacker, d, d - 1, d + 1, 0.01, 500) for drawn, attacker, d in cases]
    write(report, "05_adversarial", "against_static", columns, [dict(zip(columns, row, strict=True)) for row in rows])
    assert "hurts more than it helps: better in 0, worse in 1, undecided in 0 of 1 comparisons" in answered(report)[1].text


def test_the_leanest_configuration_is_one_that_is_not_shown_to_lose(report):
    columns = ["budget", "file", "average_bits", "f1_change", "f1_change_low", "f1_change_high", "n"]
    rows = [(8, "a.yaml", 8, 0, -1, 1, 60), (4, "b.yaml", 3.9, -1, -3, 0.5, 60), (3, "c.yaml", 3, -9, -12, -6, 60)]
    write(report, "03_sensitivity_heatmaps", "recommended", columns, [dict(zip(columns, row, strict=True)) for row in rows])
    text = answered(report)[2].text
    assert "60 questions do not show F1 to be lost: 4, as" in text and "(b.yaml)" in text
    assert "would not show a loss of up to 3 points" in text
    assert "within 3 bits (3.00 spent) F1 −9.0 [−12.0, −6.0] points" in text


def test_not_tested_is_what_the_params_leave_out_or_what_has_not_run(report):
    ran(report, "02_switchable_train", {"comparisons": {"methods": [], "quantizers": []}})
    said = [a.text for a in answered_alone(report)]
    assert said[3] == "Not tested in this report: 02 switchable train has no such table."
    assert said[1] == "Not tested in this report: 05 adversarial has not run."


@pytest.mark.parametrize("what", ["table", "column"])
def test_what_is_declared_and_missing_is_an_error_or_an_older_report(report, what):
    ran(report, "03_sensitivity_heatmaps")
    if what == "column":
        write(report, "03_sensitivity_heatmaps", "recommended", ["budget", "file"], [{"budget": 8, "file": "a.yaml"}])
    with pytest.raises(PublishedError, match="recommended.csv is declared, and missing"):
        answered_alone(report)
    ran(report, "03_sensitivity_heatmaps", code="of another time")
    found = answered_alone(report)
    assert found[2].text.startswith("This report was made before the present code") and not found[2].links
    assert "run 03_sensitivity_heatmaps again" in found[2].text and "undecided in 1 of 1" in found[0].text
