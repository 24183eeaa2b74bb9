"""A check passes and fails as its interval says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qatlib.judging.attack_rules import (
    Check,
    about_zero,
    above_zero,
    broken,
    masking_suspected,
    not_below_zero,
    summary,
    table,
    tally,
)
from qatlib.judging.stats import Estimate


def estimate(low, high):
    return Estimate((low + high) / 2, low, high, 500, 50)


@pytest.mark.parametrize(
    ("check", "passing", "failing", "untold"),
    [
        (above_zero, [(0.1, 30)], [(-0.1, 3), (-30, -1)], [(-3, 20)]),
        (not_below_zero, [(-1, 30), (1, 3), (-0.9, -0.1)], [(-3, -1), (-30, -2)], [(-17.2, 0.9), (-20, 30), (-5, 1)]),
        (about_zero, [(-2, 3), (-0.1, 0.9)], [(0.5, 30), (-30, -0.5), (0.2, 0.9)], [(-17.2, 0.9), (-1, 20), (-1, 5)]),
        (broken, [(0, 4)], [(6, 9)], [(3, 9)]),
    ],
)
def test_checks(check, passing, failing, untold):
    for verdict, intervals in {"pass": passing, "FAIL": failing, "too few to tell": untold}.items():
        assert all(check(1, "x", estimate(*i)).verdict == verdict for i in intervals), verdict


def test_masking_is_suspected_where_the_gradient_loses_or_finds_nothing():
    good = [Check(n, "x", verdict="pass") for n in range(13)]
    others = [Check(11, "x", verdict="FAIL"), Check(9, "x"), Check(8, "x", verdict="too few to tell")]
    assert not masking_suspected([*good, *others])
    assert all(masking_suspected([*good, Check(n, "x", verdict="FAIL")]) for n in (0, 3, 4, 6, 8))


def test_the_page_says_what_does_not_hold_and_what_can_not_be_told():
    good, untold = [Check(2, "x", verdict="pass"), Check(9, "x")], Check(7, "x", verdict="too few to tell")
    assert summary(good) == "All checks hold."
    assert summary([*good, untold, untold, replace(untold, number=0)]) == "Too few questions to tell: of check 0, 7."
    assert summary([*good, untold, Check(6, "x", verdict="FAIL")]).startswith("Failed: check 6 (x). Too few")
    assert "masking" in summary([Check(8, "x", verdict="FAIL")])
    assert tally([*good, untold]) == "1 lines passed, 0 failed, 1 rest on too few questions"


def test_a_table_has_every_check_with_or_without_figures():
    found = table([Check(1, "stated"), above_zero(3, "costs", estimate(1, 3)), Check(6, "share", verdict="FAIL")])
    assert found["holds"].tolist() == ["shown", "pass", "FAIL"] and found["value"].tolist()[1] == 2
    assert found["n"].tolist() == [0, 500, 0]
