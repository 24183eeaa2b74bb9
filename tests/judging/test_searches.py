"""What a search found, in tables and sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qatlib.judging import searches
from qatlib.precision import Precision
from qatlib.search import Allocation


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [([3.0, 2, 1], ""), ([1.04, 1, 1], "about the same time"), ([1.0, 2, 3], "the base is the fastest"), ([2, 1, 3], "")],
)
def test_a_page_says_where_time_leaves_nothing_to_search(milliseconds, said):
    precisions = tuple(Precision(b, b) for b in (8, 4, 2))
    cost = np.tile(np.array(milliseconds, float), (2, 1))
    found = searches.no_tradeoff(Allocation(((0, "qkv"), (1, "qkv")), precisions, np.zeros((2, 3)), cost))
    assert said in found and bool(said) == bool(found)


def test_who_is_ahead_is_said_by_intervals():
    rows = [("random", "8", -1.0, 1.0), ("random", "4", 0.5, 2.0), ("learned", "4", 0.5, 2.0), ("learned", "3", -2.0, -0.5)]
    gaps = pd.DataFrame(rows, columns=["over", "budget", "difference_low", "difference_high"])
    said = searches.standing(gaps)
    assert "ahead of random at a budget of 4; learned at a budget of 4;" in said
    assert said.endswith("ahead of the ILP is learned at a budget of 3.")
    said = searches.standing(gaps[:1])
    assert said.count("no method at any budget") == 2
