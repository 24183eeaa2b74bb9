"""Every check lets through what is allowed, and names the rest in one sentence."""

from __future__ import annotations

import numpy as np
import pytest

from qatlib.checks import filled, finite, one_of, whole


def test_what_is_allowed_passes():
    filled(a=[1], b=(0,), c=np.zeros(3), d={"x": 1})
    whole(1, a=1, b=np.int64(7))
    whole(0, a=0)
    finite(a=-3, b=2.5, c=np.float32(1))
    finite(0, a=0, b=1e300)
    finite(0, above=True, a=1e-9)
    one_of(("l2", "linf"), norm="l2")


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (lambda: filled(questions=[]), "questions is empty; allowed is a list with at least one entry"),
        (lambda: filled(a=[1], questions=()), "questions is empty; allowed is a list with at least one entry"),
        (lambda: filled(paragraphs="one text"), "paragraphs is 'one text'; allowed is a list"),
        (lambda: filled(features=None), "features is None; allowed is a list"),
        (lambda: whole(1, batch_size=0), "batch_size is 0; allowed is an integer of at least 1"),
        (lambda: whole(0, steps=-1), "steps is -1; allowed is an integer of at least 0"),
        (lambda: whole(1, steps=2.0), "steps is 2.0; allowed is an integer of at least 1"),
        (lambda: whole(1, steps=True), "steps is True; allowed is an integer of at least 1"),
        (lambda: whole(1, steps="4"), "steps is '4'; allowed is an integer of at least 1"),
        (lambda: finite(budget=float("nan")), "budget is nan; allowed is a finite number"),
        (lambda: finite(0, budget=-0.5), "budget is -0.5; allowed is a finite number of at least 0"),
        (lambda: finite(0, above=True, budget=0), "budget is 0; allowed is a finite number above 0"),
        (lambda: finite(budget="4"), "budget is '4'; allowed is a finite number"),
        (lambda: one_of(("l2", "linf"), norm="l1"), "norm is 'l1'; allowed is one of 'l2', 'linf'"),
    ],
)
def test_what_is_not_allowed_is_named_in_one_sentence(check, said):
    with pytest.raises(ValueError) as error:
        check()
    assert str(error.value) == said


def test_a_long_value_is_cut():
    with pytest.raises(ValueError) as error:
        whole(1, steps=np.arange(1000))
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
