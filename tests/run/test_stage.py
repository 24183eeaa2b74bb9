"""What a notebook keeps between executions, without one."""

import json
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from qatlib.judging.published import Declarations, PublishedError, read_tables
from qatlib.run.keys import Run
from qatlib.run.sources import PipelineError
from qatlib.run.stage import EXECUTING, Stage

REPOSITORY = Path(__file__).parents[2]
PLAIN = {name: {"about": "", "columns": "x [–]"} for name in ("t", "t2")}
MADE_UP = PLAIN | {"speed": {"about": "", "measured": True, "columns": "seconds [s]"}}
TABLES = Declarations({"01_build": read_tables(MADE_UP, {}, {})})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """This repository with runs of its own."""
    for name in ("qatlib", "notebooks", "params", "constraints.txt"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


def test_other_params_compute_anew_and_what_was_kept_is_found_again(root: Path) -> None:
    computed: list[int] = []

    def table(seed: int) -> int:
        stage = Stage("01_build", "smoke", [f"seed={seed}"], root, TABLES)

        def compute() -> pd.DataFrame:
            computed.append(seed)
            stage.checkpoints("a").write_text(str(seed))
            return pd.DataFrame({"x": [seed]})

        found = int(stage.table("t", compute).x[0])
        assert stage.checkpoints("a").read_text() == str(found)
        return found

    Stage("01_build", "smoke", ["seed=9"], root)  # nothing is computed: nothing of it is set aside
    assert [table(seed) for seed in (1, 2, 1, 3, 2)] == [1, 2, 1, 3, 2]
    assert computed == [1, 2, 3]
    assert [table(seed) for seed in (4, 1)] == [4, 1]  # 1 was set aside longest ago, behind 2 and 3
    assert computed == [1, 2, 3, 4, 1]


def test_what_was_chosen_first_is_kept_and_holds_downstream(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "is_done", lambda run, stage: True)

    def chosen(stage: str, choice: str, *overrides: str) -> str:
        return Stage(stage, "smoke", overrides, root).settled("arithmetic", lambda: choice)

    assert chosen("04_cpt", "late") == "late"
    assert chosen("01_build", "first") == chosen("01_build", "second") == "first"
    assert chosen("04_cpt", "later") == "late"  # as it began
    assert chosen("05_adversarial", "other") == "first"  # as its upstream stage began
    assert chosen("01_build", "anew", "seed=1") == "anew" and chosen("01_build", "again") == "first"


@pytest.mark.slow
@pytest.mark.parametrize("then", [(1, 2), (2, 1)])
@pytest.mark.parametrize("stop", range(7))  # of six moves none, one, … all are made
def test_what_is_set_aside_survives_a_kill(root: Path, monkeypatch: pytest.MonkeyPatch, stop: int, then: tuple[int, int]) -> None:
    def stage(seed: int) -> Stage:
        return Stage("01_build", "smoke", [f"seed={seed}"], root, TABLES)

    for seed in (1, 2):
        stage(seed).table("t", lambda seed=seed: pd.DataFrame({"x": [seed]}))
    moves, rename = iter(range(stop)), Path.rename

    def until_stopped(path: Path, target: Path) -> Path:
        if next(moves, None) is None:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(Path, "rename", until_stopped)
        stage(1)
    for seed in then:
        assert stage(seed).table("t", lambda: pytest.fail("computed again")).x[0] == seed


def test_what_is_said_to_hold_is_kept_over_a_change_and_the_page_says_so(root: Path) -> None:
    def stage(*overrides: str) -> Stage:
        return Stage("01_build", "smoke", overrides, root, TABLES)

    why = "a seed that nothing draws from"
    with pytest.raises(PipelineError, match="01_build: keeps nothing yet"):
        Run("smoke", root=root).keep("01_build", why)
    made = stage("seed=1").table("t", lambda: pd.DataFrame({"x": [1]}))
    kept = Run("smoke", ["seed=2"], root)
    kept.keep("01_build", why)
    kept.keep("01_build", "nothing has changed since")
    assert stage("seed=2").table("t", lambda: pytest.fail("computed again")).equals(made)
    again = stage("seed=2")
    again.provenance()
    written = json.loads((kept.directory / "01_build/provenance.json").read_text())
    assert written["kept"] == [why]
    (first,) = written["computed"]  # the execution that made the table, and not the one that read it
    assert first["started"] <= written["started"] and first["duration_s"] >= 0
    again.table("t2", lambda: made)
    assert kept.computed("01_build")[0] == first and len(kept.computed("01_build")) == 2
    stage("seed=3")
    other = Run("smoke", ["seed=3"], root)
    assert other.kept("01_build") == [] and other.computed("01_build") == []


def test_unpublished_table_is_for_later_stages_only(root: Path) -> None:
    frame = pd.DataFrame({"x": [1.5]})
    stage = Stage("01_build", "smoke", [], root)
    stage.table("parts", lambda: frame, published=False)
    assert not (stage.results / "parts.csv").exists()
    pd.testing.assert_frame_equal(stage.upstream_table("01_build", "parts"), frame)


def test_what_is_measured_of_the_machine_is_kept_apart_from_results(root: Path) -> None:
    stage = Stage("01_build", "smoke", [], root, TABLES)
    first = stage.measured("speed", lambda: pd.DataFrame({"seconds": [0.25]}))
    assert stage.measured("speed", lambda: pytest.fail("measured again")).equals(first)
    stage.show(first, "speed", "Speed", measured=True)
    assert (stage.directory / "timing/speed.csv").is_file() and not (stage.results / "speed.csv").exists()


def test_text_that_is_measured_comes_back_as_it_was(root: Path) -> None:
    declared = {"speed": {"about": "", "measured": True, "columns": "id [text], seconds [s]"}}
    stage = Stage("01_build", "smoke", [], root, Declarations({"01_build": read_tables(declared, {}, {})}))
    frame = pd.DataFrame({"id": ["007", "NA", "1e5", ""], "seconds": [0.1, 2.0, float("nan"), 1 / 3]})
    pd.testing.assert_frame_equal(stage.measured("speed", lambda: frame), frame, check_exact=True)


def test_what_is_not_declared_is_refused_and_what_was_computed_for_it_is_kept(root: Path) -> None:
    stage = Stage("01_build", "smoke", [], root, TABLES)
    renamed = pd.DataFrame({"y": [1]})
    with pytest.raises(PublishedError, match="no table 'u' is declared"):
        stage.table("u", lambda: pytest.fail("computed"))
    for publish in (
        lambda: stage.table("t", lambda: renamed),
        lambda: stage.show(renamed, "t", "A table"),
        lambda: stage.figure(Figure(), "t", renamed, "A picture", "A picture"),
    ):
        with pytest.raises(PublishedError, match="01_build: table 't' lacks 'x', has, undeclared, 'y'; declared are x"):
            publish()
    with pytest.raises(PublishedError, match="table 'speed' is declared for timing/ alone"):
        stage.show(pd.DataFrame({"seconds": [1]}), "speed", "Speed")
    with pytest.raises(PublishedError, match="no table 'u' is declared"):
        stage.headline("It works.", "u")
    assert not [*stage.results.glob("*")] and (stage.directory / "memo/t.csv").is_file()


def test_a_finding_is_shown_once_however_often_it_is_said(root: Path) -> None:
    stage = Stage("01_build", "smoke", [], root, TABLES)
    for table in ("speed", "t"):
        stage.headline("F1 falls", table)
        stage.headline("and rises", "t", brief=True)
    written = json.loads((stage.directory / "headlines.json").read_text())
    assert stage.headlines == [line["text"] for line in written] == ["F1 falls", "and rises"]
    assert [(line["table"], line["brief"]) for line in written] == [("t", False), ("t", True)]
    assert Stage("01_build", "smoke", [], root).headlines == []


def test_a_kernel_may_make_its_stage_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXECUTING, "1")
    for _ in range(2):  # the second would wait for the first one's lock
        stage = Stage("01_build", "smoke", [], root, TABLES)
    assert stage.table("t", lambda: pd.DataFrame({"x": [1]})).x[0] == 1
