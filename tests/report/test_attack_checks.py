"""The twelve checks on a model of the smoke profile."""

from __future__ import annotations

from qatlib.attacks import scores
from qatlib.report import attack_checks


def test_all_checks_are_made(work, model, frame):
    complete = scores.attacked(frame, *work.sets)
    found = attack_checks.main_checks(complete, work.reach(model), work.sets, work.section.control, resamples=100)
    outside = work.from_outside(model, work.trained("random", 1000))
    for p in work.ends:
        found += attack_checks.variation_checks(work.variations(model, p), complete, p.name, resamples=100)
    found += attack_checks.outside_checks(work.gradients(model), outside, complete, work.fixed.name, resamples=100)
    harder, rounding = work.harder(model), work.rounded_noisily(model)
    harder = scores.with_rpi(harder, work.sets[0])
    of = (complete, harder, work.drawn_finer(model), rounding, work.sets[0])
    found += attack_checks.adaptive_checks(*of, work.section.draws, resamples=100)
    found += attack_checks.cost_checks(work.section, {"words at 8": 12.5})
    assert {check.number for check in found} == set(range(13))
    assert any("over 2 such draws a step (a believable evaluation takes 20)" in check.what for check in found)
    assert sum("10 times the passes" in check.what for check in found) == 2  # at both ends of the set
    table = attack_checks.noise_table(complete, rounding, work.sets[0], resamples=100)
    assert table["defence"].tolist() == ["RPI {8, 4}", *(d for d in ("8", "4", "noise at 8", "noise at 4") for _ in range(2))]
    assert set(table["n"]) == {len(work.fewer)} and table["rpi_gain"][0] == 0
