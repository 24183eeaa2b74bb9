import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qatlib.params.load import load_params
from qatlib.run.provenance import collect


def provenance(root: Path, *overrides: str, **data: str | None) -> dict[str, Any]:
    started = datetime.now(UTC) - timedelta(seconds=5)
    return collect(load_params("quick", overrides), "quick", overrides, data, started, root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "qatlib").mkdir()
    (tmp_path / "qatlib/a.py").write_text("1")
    return tmp_path


def test_says_what_is_needed_to_make_it_again(root: Path) -> None:
    asked = datetime.now(UTC)
    found = provenance(root, "seed=3", train="00ff", validation=None)
    longest = 5 + (datetime.now(UTC) - asked).total_seconds()
    assert json.loads(json.dumps(found)) == found
    assert (found["profile"], found["overrides"], found["seeds"]) == ("quick", ["seed=3"], [3])
    assert found["parameters"]["switchable"]["training"]["max_grad_norm"] == 1.0
    assert found["data"] == [{"name": "train", "sha256": "00ff"}, {"name": "validation"}]
    assert {"torch", "transformers", "numpy"} <= found["libraries"].keys()
    assert found["device"]["name"] and found["device"]["cores"] >= 1
    assert datetime.fromisoformat(found["started"]).tzinfo == UTC
    assert 5 <= found["duration_s"] <= longest + 0.05  # rounded to tenths


def test_the_seeds_are_those_of_the_stages_trainings(root: Path) -> None:
    params = load_params("quick", ["seed=7", "cpt.seeds=[0,1,2]"])
    seeds = {stage: collect(params, "quick", [], {}, datetime.now(UTC), root, stage)["seeds"] for stage in ("01_build", "04_cpt")}
    assert seeds == {"01_build": [7], "04_cpt": [0, 1, 2, 7]}


def test_code_outside_git_and_in_it(root: Path) -> None:
    first = provenance(root)["code"]
    assert (first["commit"], first["dirty"]) == (None, None)
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert provenance(root)["code"]["commit"] is None  # no commit yet
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "a"], check=True)
    second = provenance(root)["code"]
    assert len(second["commit"]) == 40
    assert second["dirty"] is False
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports/index.html").write_text("made again")  # a result, and no code
    assert provenance(root)["code"]["dirty"] is False
    (root / "qatlib/a.py").write_text("2")
    third = provenance(root)["code"]
    assert third["dirty"] is True
    assert first["library_sha256"] == second["library_sha256"] != third["library_sha256"]
