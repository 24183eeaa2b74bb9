"""Verdicts on scales, on scores whose answer is known."""

from __future__ import annotations

from qatlib.judging.claims import scales
from tests.judging.claims.scores import said, scores

OPTIONS = {"resamples": 100}
WEIGHTS = {
    "per_channel": {"32": 90.0, "w8a32": 90, "w4a32": 80, "w2a32": 1},
    "per_tensor": {"w8a32": 90.0, "w4a32": 50, "w2a32": 1},
}
ACTIVATIONS = {
    "per_token": {"8": 90.0, "4": 80},
    "calibrated": {"8": 89.0, "4": 70},
    "carried_over": {"4": 40.0},
    "uncalibrated": {"8": 10.0, "4": 5},
}


def test_only_the_bits_it_speaks_of_count():
    table = scales.verdicts(scores(WEIGHTS, [0]), scores(ACTIVATIONS, [0]), **OPTIONS)
    assert said(table) == {"C07": "reproduced", "C08": "reproduced"}
    assert table.loc[table["claim"] == "C07", "effect"].tolist() == ["a scale a channel over one a matrix at w4a32"]


def test_carried_over_scales_that_are_as_good_refute_calibrating_each():
    better = ACTIVATIONS | {"carried_over": {"4": 70.5}}
    assert said(scales.verdicts(scores(WEIGHTS, [0]), scores(better, [0]), **OPTIONS))["C08"] == "not reproduced"


def test_equal_answers_to_few_questions_decide_nothing():
    alike = ACTIVATIONS | {"carried_over": {"4": 70.0}}
    assert said(scales.verdicts(scores(WEIGHTS, [0]), scores(alike, [0]), **OPTIONS))["C08"] == "undecided"


def test_without_bits_in_question_nothing_is_decided():
    only_8 = {name: {"8": 90.0} for name in WEIGHTS}
    table = scales.verdicts(scores(only_8, [0]), scores(ACTIVATIONS, [0]), **OPTIONS)
    assert said(table)["C07"] == "not tested" and table["value"].isna().sum() == 1
