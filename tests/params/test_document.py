"""docs/parameters.md says what the schema says, of every key."""

import re
from typing import Any

import pytest

from qatlib.params.document import PAGE, document, meanings
from qatlib.params.load import load_params
from qatlib.params.sections import Evaluation

TEXT = document()
TABLES = {
    heading.strip("`"): dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.M))
    for heading, table in re.findall(r"^## (.+?)$(.+?)(?=^## |\Z)", TEXT, re.M | re.S)
}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == TEXT, "run python -m qatlib.params.document"


def test_every_key_has_a_meaning() -> None:
    for heading, rows in TABLES.items():
        for key, cells in rows.items():
            assert re.search(r"\| \S.+\.$", cells), (heading, key)


def keys(values: dict[str, Any], place: str = "") -> list[str]:
    """The dotted keys of nested sections, outside lists."""
    inner = [key for name, value in values.items() if isinstance(value, dict) for key in keys(value, f"{place}{name}.")]
    return [*(f"{place}{name}" for name in values), *inner]


@pytest.mark.parametrize("key", keys(load_params("smoke").model_dump(mode="json")))
def test_a_key_stands_in_the_table_of_its_section(key: str) -> None:
    section, _, name = key.rpartition(".")
    named = [rows for heading, rows in TABLES.items() if heading == (section or "The file")]
    several = re.findall(rf"^## (\w+)\n\nAt [^\n]*`{re.escape(section)}`", TEXT, re.M)
    assert name in (named or [TABLES[several[0]]])[0]


def test_meanings_are_the_docstrings_of_attributes() -> None:
    found = meanings(Evaluation)
    assert list(found) == list(Evaluation.model_fields)
    assert found["resamples"] == "Bootstrap resamples, drawn by paragraph."


def test_a_row_gives_type_default_and_quick_value() -> None:
    assert TABLES["teacher"]["dropout"].startswith("a number of at least 0 and less than 1 | required | `0.0` | ")
    assert TABLES["adversarial"]["control"].startswith("a list, each a precision | `[16, 32]` | `[16, 32]` | ")
    assert TABLES["comparisons"]["methods"].startswith("a list, each [Method](#method) | required |  | ")
    assert TABLES["TrainingArguments"]["weight_decay"].startswith("a number of at least 0 and at most 1e+09 | `0.0` | ")
