"""Tables on disk: they come back exactly, or are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib.judging.published import Column, Table
from qatlib.run.frames import columns, read_table, to_csv, write_table

_columns = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
        "float": st.floats(allow_nan=True, allow_infinity=True),
        "int": st.integers(-(2**63), 2**63 - 1),
        "bool": st.booleans(),
    },
)


@settings(max_examples=50)
@given(rows=st.lists(_columns, min_size=1, max_size=5).filter(lambda rows: bool(rows[0])))
def test_tables_come_back_exactly(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    names = sorted(rows[0])
    defaults = {"text": "", "float": 0.0, "int": 0, "bool": False}
    dtypes = {"text": "str", "float": "float64", "int": "int64", "bool": "bool"}
    frame = pd.DataFrame({n: pd.Series([r.get(n, defaults[n]) for r in rows], dtype=dtypes[n]) for n in names})
    path = tmp_path_factory.mktemp("tables") / "t"
    write_table(path, frame)
    pd.testing.assert_frame_equal(read_table(path), frame, check_exact=True)


def test_tables_that_would_not_come_back(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"table t: allowed are integers, floats, booleans and text, not x \(object\)"):
        write_table(tmp_path / "t", pd.DataFrame({"x": [1, "a"]}))
    with pytest.raises(TypeError, match="make it a column by reset_index"):
        write_table(tmp_path / "t", pd.DataFrame({"x": [1]}, index=["a"]))
    assert not list(tmp_path.iterdir())
    write_table(tmp_path / "t", pd.DataFrame({"x": np.array([0.1], dtype=np.float32)}))


def test_the_columns_are_those_of_the_file() -> None:
    frame = pd.DataFrame({"x": [1, 2]})
    for each in (frame, frame.iloc[1:], frame.set_index(pd.Index(["a", "b"], name="y"))):
        assert columns(each) == to_csv(each).splitlines()[0].split(",")


SPELLED = [
    "NA",
    "nan",
    "null",
    "None",
    "007",
    "1e5",
    "True",
    "-0",
    "inf",
    "",
    " ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    '"',
    "'",
    ",",
    "\0",
    "\\",
    "#",
]
SPELLED += ["\ufeff", "\u2028", "\x1a", "\x85", "é", "\U0001f600", "=1+1", 'a"b,c\nd', "  a "]


@pytest.mark.parametrize("columns", [["id"], ["id", "word"]])
@pytest.mark.parametrize("text", SPELLED)
def test_text_comes_back_whatever_it_spells(text: str, columns: list[str], tmp_path: Path) -> None:
    frame = pd.DataFrame({name: pd.Series([text, "b", text + text], dtype="str") for name in columns})
    write_table(tmp_path / "t", frame)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t"), frame)
    kinds = {name: Column(name, "text") for name in columns}
    pd.testing.assert_frame_equal(Table("t", "", (*kinds.values(),)).read(tmp_path / "t.csv"), frame)
