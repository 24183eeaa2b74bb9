"""A report's tables are read through their declarations."""

from __future__ import annotations

import pytest

from qatlib.judging.published import PublishedError
from qatlib.site.tables import OlderReport, address, table
from tests.site.test_ledger import ran, write

COSTS = ["model", "trained_at", "passes", "bitops"]


@pytest.fixture
def report(tmp_path):
    write(tmp_path, "04_cpt", "costs", COSTS, [dict.fromkeys(COSTS, 1)])
    return tmp_path


def test_an_undeclared_table_or_column_is_refused_even_where_the_file_has_it(report):
    write(report, "04_cpt", "cost", COSTS, [])
    with pytest.raises(PublishedError, match="04_cpt: no table 'cost' .*; close to it are costs"):
        table(report, "04_cpt", "cost")
    write(report, "04_cpt", "costs", [*COSTS, "seconds"], [dict.fromkeys([*COSTS, "seconds"], 1)])
    (row,) = table(report, "04_cpt", "costs")
    with pytest.raises(PublishedError, match="costs.csv: no column 'seconds' is declared; declared are model, trained_at"):
        row["seconds"]


def test_a_declared_column_that_is_missing_is_an_error_and_in_a_report_of_other_code_says_so(report):
    write(report, "04_cpt", "costs", COSTS[:-1], [dict.fromkeys(COSTS[:-1], 1)])
    (row,) = table(report, "04_cpt", "costs")
    with pytest.raises(PublishedError, match="the column 'bitops' of results/04_cpt/costs.csv is declared, and missing"):
        row["bitops"]
    ran(report, "04_cpt", code="of another time")
    with pytest.raises(OlderReport, match="made before .* expects the column 'bitops' of results/04_cpt/costs.csv"):
        row["bitops"]


def test_a_table_may_be_missing_only_where_nothing_asks_for_it(report):
    assert table(report, "02_switchable_train", "latency") == []  # has not run
    ran(report, "04_cpt", {"cpt": {"equal_bitops": []}})
    assert table(report, "04_cpt", "equal_bitops") == [] and address(report, "04_cpt", "equal_bitops") is None
    ran(report, "04_cpt", {"cpt": {"equal_bitops": ["cpt shared"]}})
    for name in ("equal_bitops", "gaps"):
        with pytest.raises(PublishedError, match=f"results/04_cpt/{name}.csv is declared, and missing"):
            table(report, "04_cpt", name)
    assert address(report, "04_cpt", "costs") == "results/04_cpt/costs.csv"
