"""A check passes and fails as its interval says."""

from __future__ import annotations

import pytest

from qatlib.attacks.checks import Check, about_zero, above_zero, broken, masking_suspected, not_below_zero, table
from qatlib.stats import Estimate


def estimate(low, high):
    return Estimate((low + high) / 2, low, high, 500, 50)


@pytest.mark.parametrize(
    ("check", "passing", "failing"),
    [
        (above_zero, [(0.1, 3)], [(-0.1, 3), (-3, -1)]),
        (not_below_zero, [(-1, 3), (1, 3), (-0.9, -0.1)], [(-3, -1)]),
        (about_zero, [(-2, 3), (0.2, 0.9), (-0.9, -0.2)], [(0.5, 3), (-3, -0.5)]),
        (broken, [(0, 4)], [(5, 9)]),
    ],
)
def test_checks(check, passing, failing):
    assert all(check(1, "x", estimate(*i)).verdict == "pass" for i in passing)
    assert all(check(1, "x", estimate(*i)).verdict == "FAIL" for i in failing)


def test_masking_is_suspected_where_the_gradient_loses_or_finds_nothing():
    good = [Check(n, "x", holds=True) for n in range(13)]
    assert not masking_suspected([*good, Check(11, "x", holds=False), Check(9, "shown")])
    assert all(masking_suspected([*good, Check(n, "x", holds=False)]) for n in (0, 3, 8))


def test_a_table_has_every_check_with_or_without_figures():
    found = table([Check(1, "stated"), above_zero(3, "costs", estimate(1, 3)), Check(6, "share", holds=False)])
    assert found["holds"].tolist() == ["shown", "pass", "FAIL"] and found["value"].tolist()[1] == 2
    assert found["n"].tolist() == [0, 500, 0]
