"""The five real notebooks, from the smoke profile to the pages: unbroken, and killed on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

from qatlib.judging import attack_rules as checks
from qatlib.judging.attack_scores import contrast
from qatlib.judging.claims import cpt, robust
from qatlib.judging.published import published as declarations
from qatlib.params.load import load_params
from qatlib.run.stages import STAGES
from qatlib.site import ledger, pages
from tests.runs import copy, finish, start

OPTIONS = {"resamples": 100, "confidence": 0.95}
"""Of the smoke profile."""


def kill_when(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Kill a run, its kernels and all, as soon as a file is there."""
    while not path.is_file():
        assert process.poll() is None, f"{path.name} never came"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run to the pages."""
    root = copy(tmp_path_factory.mktemp("unbroken"))
    finish(start(root, "report"))
    return root


def test_the_report_has_a_page_a_notebook_with_figures_and_headlines(root: Path) -> None:
    report = root / "reports" / "smoke"
    assert sorted(p.stem for p in report.glob("*.html")) == sorted(["index", "claims", *STAGES])
    index = (report / "index.html").read_text()
    assert "F1 points of one switchable model against the fp32 teacher" in index and str(root) not in index
    for stage in STAGES[:2]:
        page = (report / f"{stage}.html").read_text()
        assert page.count("<img ") >= 2 and page.count("<table") >= 3 and str(root) not in page


def test_nothing_in_a_report_says_whose_machine_it_was(root: Path) -> None:
    paths = "|".join(map(re.escape, ["alice", str(root), sys.prefix, f"{tempfile.gettempdir()}/"]))
    said = re.compile(rf"{paths}|\b{re.escape(socket.gethostname())}\b")
    for path in (p for p in (root / "reports").rglob("*") if p.is_file()):
        text = re.sub(r"base64,[\w+/=]+|(?s:<style>.*?</style>)", "", path.read_text())
        assert not said.search(text), path.name


def test_the_ledger_is_rebuilt_from_the_result_files(root: Path, tmp_path: Path) -> None:
    report = shutil.copytree(root / "reports" / "smoke", tmp_path / "smoke")
    before = (report / "claims.json").read_bytes()
    for page in report.glob("claims.*"):
        page.unlink()
    pages.render(report)
    assert (report / "claims.json").read_bytes() == before
    effects = [(claim["id"], e) for claim in json.loads(before)["claims"] for e in claim["effects"]]
    assert len({name for name, _ in effects}) > 13  # of 26: what smoke leaves out has none
    for name, e in effects:
        rows = ledger.claim_rows(report, e["stage"])
        (row,) = [r for r in rows if (r["claim"], r["effect"], r["must_be"]) == (name, e["effect"], e["must_be"])]
        assert row["value"] == ("" if e["value"] is None else str(e["value"])) and (report / e["href"]).is_file()


def test_every_table_that_the_params_ask_for_is_there_with_the_declared_columns(root: Path) -> None:
    """A declaration that nothing fulfils any more is as stale as a table without one, which no stage writes."""
    report, params = root / "reports" / "smoke", load_params("smoke").model_dump(mode="json")
    for stage, tables in declarations().tables.items():
        for table in (t for t in tables if t.due(params)):
            pattern = f"{table.folder}/{stage}/{re.sub(r'{.*?}', '*', table.name)}.csv"
            assert next(report.glob(pattern), None), f"{pattern} is declared, and nothing wrote it"
        for path in (p for kind in ("results", "timing") for p in report.glob(f"{kind}/{stage}/*.csv")):
            columns = path.read_text().partition("\n")[0].split(",")
            declarations().check(stage, path.stem, columns, measured=path.parts[-3] == "timing")


def published(root: Path, stage: str, name: str, **dtype: str) -> pd.DataFrame:
    return pd.read_csv(root / "reports" / "smoke" / "results" / stage / f"{name}.csv", dtype=dtype)


def test_differences_are_made_again_from_the_files_of_scores(root: Path) -> None:
    """What the verdicts on trainings rest on; in the smoke profile every method has one seed."""

    def scores(model: str, precision: str) -> pd.DataFrame:
        return published(root, "04_cpt", f"scores_{model.replace(' ', '_')}_seed0_{precision}")

    gaps = published(root, "04_cpt", "gaps", precision="str")
    pairs = [row for row in gaps.itertuples() if "static" not in (row.model, row.over)]
    assert len(pairs) > 6
    for row in pairs:
        gap = contrast(scores(row.model, row.precision), scores(row.over, row.precision), **OPTIONS)
        assert (gap.value, gap.low, gap.high, gap.n) == (row.difference, row.difference_low, row.difference_high, row.n)


def test_verdicts_on_cyclic_training_are_made_again_from_the_files_of_answers(root: Path) -> None:
    params = load_params("smoke")
    cycled = {p.name: p for p in params.cycled}

    def trained(kind: str) -> pd.DataFrame:
        parts = []
        for path in sorted((root / "reports/smoke/results/04_cpt").glob(f"{kind}_*_seed0_*.csv")):
            model, precision = re.fullmatch(rf"{kind}_(.*?)(?:_\d+)?_seed0_(\w+)", path.stem).groups()
            if precision in cycled and not model.endswith("at_equal_bitops"):
                about = {"precision": precision, **cycled[precision]._asdict(), "seed": 0}
                parts.append(pd.read_csv(path).assign(model=model.replace("_", " "), **about))
        return pd.concat(parts, ignore_index=True)

    made = cpt.verdicts(trained("scores"), trained("perplexity"), {}, **OPTIONS).query("claim != 'C03'")
    kept = published(root, "04_cpt", "claims").query("claim != 'C03'")
    assert set(made["claim"]) == {f"C{i}" for i in range(16, 20)}
    made, kept = (frame.sort_values(["claim", "effect"], kind="stable") for frame in (made, kept))
    assert made["effect"].tolist() == kept["effect"].tolist() and made["verdict"].tolist() == kept["verdict"].tolist()
    for column in ("value", "value_low", "value_high", "n"):
        assert made[column].tolist() == pytest.approx(kept[column].tolist(), nan_ok=True)


def test_verdicts_on_robustness_are_made_again_from_the_files_of_answers(root: Path) -> None:
    rows = published(root, "05_adversarial", "attack_rows", answered="str")
    perplexities = published(root, "05_adversarial", "noise_perplexity", precision="str")
    section = load_params("smoke").adversarial
    held = published(root, "05_adversarial", "attack_checks")
    undermined = checks.undermining(checks.Check(n, "", verdict=v) for n, v in zip(held["check"], held["holds"], strict=True))
    made = robust.verdicts(rows, perplexities, [*section.sets, section.control], section.draws, bool(undermined), **OPTIONS)
    kept = published(root, "05_adversarial", "claims")
    assert made["verdict"].tolist() == kept["verdict"].tolist() and set(made["claim"]) == {f"C{i}" for i in range(20, 27)}
    for column in ("value", "value_low", "value_high", "n"):
        assert made[column].tolist() == pytest.approx(kept[column].tolist(), nan_ok=True)


def results(root: Path) -> dict[str, bytes]:
    """Every result file of the first two stages, by name."""
    folders = [root / "runs" / "smoke" / stage / "results" for stage in STAGES[:2]]
    return {str(p.relative_to(root)): p.read_bytes() for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_a_run_killed_twice_ends_with_the_same_result_files(tmp_path: Path) -> None:
    """This is also the same seed twice: the two runs share nothing but their params."""
    unbroken, killed = copy(tmp_path / "unbroken"), copy(tmp_path / "killed")
    target = "runs/smoke/02_switchable_train/done"
    whole = start(unbroken, target)
    for moment in ("01_build/checkpoints/pretraining/checkpoint.safetensors", "02_switchable_train/memo/scores_switchable_8.csv"):
        kill_when(killed / "runs" / "smoke" / moment, start(killed, target))
    finish(start(killed, target))
    finish(whole)
    assert results(killed) == results(unbroken) and len(results(killed)) > 30  # of about 60
