"""Options of schedules say what a step costs, and refuse in one sentence what a schedule has no use for."""

from __future__ import annotations

import pytest

from qatlib.precision import Precision
from qatlib.scheduling import CosineArguments, PhaseArguments, ScheduleArguments

EIGHT = Precision(8, 8)
WRONG = {
    "drawn where all are trained": ({"name": "all", "passes": 2}, "null, because all trains every precision a step"),
    "a sandwich of one": ({"name": "sandwich", "passes": 1}, "an integer of at least 2, because sandwich trains the widest"),
    "no pattern": ({"name": "scheduled"}, "a list of at least one of precisions, which scheduled goes through"),
    "a pattern too many": ({"name": "all", "pattern": (EIGHT,)}, "null, because all goes through no pattern"),
    "held for ever": ({"name": "progressive", "interval": 2}, "1, because progressive gives every precision an equal share"),
    "no cosine": ({"name": "cpt"}, "a section with cycles or a period, which cpt follows"),
    "a cosine too many": ({"name": "all", "cosine": CosineArguments(cycles=1)}, "null, because all follows no cosine"),
    "nothing to come after": ({"name": "all", "then": PhaseArguments(EIGHT)}, "null, because a second phase follows cyclic"),
}


@pytest.mark.parametrize(("options", "sentence"), WRONG.values(), ids=WRONG)
def test_what_a_schedule_has_no_use_for_is_refused(options, sentence):
    with pytest.raises(ValueError, match="allowed is") as error:
        ScheduleArguments(**options)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"cycles": 2, "period": 9}, {"cycles": 1, "between": (EIGHT, Precision(4, 4))}])
def test_a_cosine_has_cycles_or_a_period_and_rises(options):
    with pytest.raises(ValueError, match="allowed is") as error:
        CosineArguments(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("all", {}, 5),
        ("cyclic", {}, 1),
        ("sandwich", {}, 4),
        ("sandwich", {"passes": 3}, 3),
        ("random_uniform", {"passes": 2}, 2),
    ],
)
def test_a_step_costs_the_passes_of_its_configurations(name, options, expected):
    assert ScheduleArguments(name, **options).passes_a_step(5) == expected
