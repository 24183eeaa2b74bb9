"""Every published table is declared once, and nothing else may be published."""

from __future__ import annotations

from pathlib import Path

import pytest

from qatlib.judging.published import Declarations, PublishedError, as_markdown, published, read_tables
from qatlib.run.stages import STAGES

ROOT = Path(__file__).parents[2]
MADE_UP = {
    "speed": {"about": "Seconds.", "measured": True, "columns": "block, {precision} [ms]"},
    "scores_{model}": {"about": "Scores.", "columns": "id, ±f1, seed?"},
    "gaps": {"about": "Gaps.", "when": "a.b", "columns": "$pair, ±gap [nats]"},
}
UNITS = {"block": "count", "id": "text", "f1": "percent", "seed": "count", "model": "text", "over": "text"}


@pytest.fixture
def declared() -> Declarations:
    return Declarations({"stage": read_tables(MADE_UP, UNITS, {"pair": "model, over"})})


def test_the_page_of_tables_is_that_of_the_declarations():
    """`python -m qatlib.judging.published > docs/tables.md` writes it."""
    assert (ROOT / "docs/tables.md").read_text(encoding="utf-8") == as_markdown(published())


def test_every_stage_has_tables_and_no_name_twice():
    assert tuple(published().tables) == STAGES
    for stage, tables in published().tables.items():
        names = [table.name for table in tables]
        assert len(names) == len(set(names)) and "claims" in names, stage


@pytest.mark.parametrize(
    ("name", "columns", "measured"),
    [
        ("scores_a", ["f1", "f1_low", "f1_high", "id"], False),
        ("scores_b_8", ["id", "f1", "f1_low", "f1_high", "seed"], False),
        ("gaps", ["model", "over", "gap", "gap_low", "gap_high"], False),
        ("speed", ["block", "8", "w2a8"], True),
    ],
)
def test_what_is_declared_may_be_published_in_any_order_of_columns(declared, name, columns, measured):
    declared.check("stage", name, columns, measured)


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("gasp", [], "stage: no table 'gasp' is declared in .*stage.yaml; close to it are gaps"),
        ("scores_a", ["id", "f1", "f1_low"], "table 'scores_a' lacks 'f1_high'; declared are id, f1, f1_low, f1_high, seed"),
        ("gaps", ["model", "over", "gap", "gap_low", "gap_high", ""], "table 'gaps' has, undeclared, ''; declared are"),
        ("gaps", ["model", "over", "gap", "gap_low", "gap_high", "gap"], "table 'gaps' has twice 'gap'"),
        ("speed", ["block"], "table 'speed' is declared for timing/ alone"),
    ],
)
def test_what_is_not_declared_is_refused_in_one_sentence(declared, name, columns, message):
    with pytest.raises(PublishedError, match=message):
        declared.check("stage", name, columns)


def test_a_table_is_due_where_the_params_ask_for_it(declared):
    gaps, speed = declared.find("stage", "gaps"), declared.find("stage", "speed")
    assert gaps.due({"a": {"b": ["x"]}}) and speed.due({})
    assert not any(gaps.due(params) for params in ({"a": {"b": []}}, {"a": {"b": None}}, {"a": None}, {}))


def test_a_column_without_a_unit_is_refused():
    with pytest.raises(PublishedError, match="table 't': no unit is declared for y"):
        [*read_tables({"t": {"about": "", "columns": "id, y"}}, UNITS, {})]


def test_the_columns_tell_scores_and_long_tables_apart():
    tables = {table.name: table for of_stage in published().tables.values() for table in of_stage}
    kinds = {name: (table.scored, table.detailed) for name, table in tables.items()}
    assert kinds["scores_{model}_{at}"] == kinds["perplexity_{model}_{at}"] == (True, True)
    assert kinds["sweep"] == kinds["attack_rows"] == kinds["training_{training}"] == (False, True)
    assert kinds["transfer"] == kinds["claims"] == (False, False)


def test_a_file_is_read_as_it_is_declared(tmp_path: Path):
    rows = "id,f1,f1_low,f1_high,seed,other\n007,1,,0.1,3,8\nNA,nan,2,inf,4,x\n"
    (tmp_path / "scores_a.csv").write_text(rows)
    declared = Declarations(
        {
            "stage": read_tables(
                MADE_UP | {"t": {"about": "", "columns": "same"}}, UNITS | {"same": "yes/no"}, {"pair": "model, over"}
            )
        }
    )
    frame = declared.find("stage", "scores_a").read(tmp_path / "scores_a.csv")
    assert frame["id"].tolist() == ["007", "NA"] and frame["other"].tolist() == ["8", "x"]
    assert frame["seed"].tolist() == [3, 4] and frame["seed"].dtype == "int64"
    assert frame["f1"].isna().tolist() == [False, True] and frame["f1_high"].tolist() == [0.1, float("inf")]
    (tmp_path / "t.csv").write_text("same\nTrue\nFalse\n")
    assert declared.find("stage", "t").read(tmp_path / "t.csv")["same"].tolist() == [True, False]
    (tmp_path / "speed.csv").write_text("block,8,w4a8\n1,0.5,2\n")
    assert declared.find("stage", "speed").read(tmp_path / "speed.csv").to_numpy().tolist() == [[1, 0.5, 2]]
