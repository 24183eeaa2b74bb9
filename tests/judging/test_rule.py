"""A verdict follows from intervals alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatlib.judging.rule import verdict
from qatlib.judging.stats import Estimate


def effect(low, high, seeds=3):
    return Estimate((low + high) / 2, low, high, 500, 50, seeds)


@pytest.mark.parametrize(
    ("effects", "said"),
    [
        ([effect(0.1, 9)], "reproduced"),
        ([effect(0.1, 9), effect(2, 3)], "reproduced"),
        ([effect(-5, -1)], "not reproduced"),
        ([effect(-0.3, 0.9)], "not reproduced"),
        ([effect(4, 9), effect(-5, -1)], "not reproduced"),
        ([effect(-0.3, 5)], "undecided"),
        ([effect(4, 9), effect(-3, 5)], "undecided"),
        ([effect(0.1, 0.5)], "reproduced"),
        ([], "undecided"),
    ],
)
def test_verdict(effects, said):
    assert verdict(effects) == said


def test_one_training_decides_nothing_about_training_but_it_may_about_a_model():
    assert verdict([effect(4, 9, seeds=1)]) == "undecided" == verdict([effect(4, 9), effect(4, 9, seeds=2)])
    assert verdict([effect(4, 9, seeds=1)], about_training=False) == "reproduced"


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 20)), min_size=1, max_size=5))
def test_the_opposite_of_what_is_reproduced_is_not(intervals):
    effects = [effect(low, low + width) for low, width in intervals]
    opposite = [effect(-e.high, -e.low) for e in effects]
    if verdict(effects) == "reproduced":
        assert verdict(opposite) == "not reproduced"
